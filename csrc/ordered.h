// Partial results that threads finish in any order, consumed in their own.

#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

namespace dllm {

template <typename Part>
class Ordered {
 public:
  // Calls `take` with every part whose predecessors are all there, in ascending order and one at a time.
  template <typename Take>
  void put(int64_t number, Part part, const Take& take) {
    const std::lock_guard<std::mutex> guard(mutex_);
    waiting_.emplace(number, std::move(part));
    for (auto first = waiting_.begin(); first != waiting_.end() && first->first == next_; ++next_) {
      take(first->second);
      first = waiting_.erase(first);
    }
  }

 private:
  std::mutex mutex_;
  std::map<int64_t, Part> waiting_;
  int64_t next_ = 0;
};

}  // namespace dllm
