// Intel's matrix tiles (AMX) on a CPU without them, for tests: preloaded into a process, it runs the instructions that
// such a CPU refuses, as Intel's manual describes them, and lets the process have tiles when it asks for them.

#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

struct Tile {
  uint8_t bytes[16][64];
};

struct Shapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

thread_local Tile tiles[8];
thread_local Shapes shapes;  // palette 0: there are none
std::atomic<int> multiplied;

[[noreturn]] void fail(const char* what) {
  if (write(2, what, strlen(what)) > 0) abort();
  abort();
}

float number(const uint8_t* bf16) {
  const uint8_t bytes[4] = {0, 0, bf16[0], bf16[1]};
  float x;
  std::memcpy(&x, bytes, 4);
  return x;
}

// Terms at even places are summed, those at odd ones, and both sums added to the product.
void multiply_add(int to, int left, int right) {
  if (shapes.bytes[left] / 4 != shapes.rows[right] || shapes.rows[to] != shapes.rows[left]) fail("tile shapes\n");
  ++multiplied;
  for (int m = 0; m < shapes.rows[to]; ++m)
    for (int n = 0; n < shapes.bytes[to] / 4; ++n) {
      float sums[2] = {}, product;
      for (int k = 0; k < shapes.rows[right]; ++k)
        for (int half = 0; half < 2; ++half)
          sums[half] = std::fma(
              number(&tiles[left].bytes[m][4 * k + 2 * half]), number(&tiles[right].bytes[k][4 * n + 2 * half]), sums[half]);
      std::memcpy(&product, &tiles[to].bytes[m][4 * n], 4);
      product += sums[0] + sums[1];
      std::memcpy(&tiles[to].bytes[m][4 * n], &product, 4);
    }
}

int64_t register_of(const ucontext_t& context, int number) {
  static const int kPlaces[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kPlaces[number]];
}

struct Operand {
  uint8_t* base;
  int64_t stride;
  int length;  // of the bytes that name it, after the one with the registers
};

Operand memory(const ucontext_t& context, const uint8_t* at, bool x, bool b, const uint8_t* end_of_relative) {
  const int mode = at[0] >> 6, low = at[0] & 7;
  int64_t base = 0, stride = 0, displacement = 0;
  int length = 0, wide = mode == 1 ? 1 : mode == 2 ? 4 : 0;
  if (low == 4) {
    const int index = (at[1] >> 3 & 7) | x << 3, from = (at[1] & 7) | b << 3;
    if (index != 4) stride = register_of(context, index) << (at[1] >> 6);
    if ((from & 7) == 5 && mode == 0) wide = 4;
    else base = register_of(context, from);
    length = 1;
  } else if (low == 5 && mode == 0) {  // relative to the next instruction
    base = reinterpret_cast<int64_t>(end_of_relative);
    wide = 4;
  } else {
    base = register_of(context, low | b << 3);
  }
  if (wide == 1) displacement = static_cast<int8_t>(at[1 + length]);
  if (wide == 4) {
    int32_t value;
    std::memcpy(&value, at + 1 + length, 4);
    displacement = value;
  }
  return {reinterpret_cast<uint8_t*>(base + displacement), stride, length + wide};
}

// The length of the instruction that was run; 0 where it is none of these.
int run(const ucontext_t& context, const uint8_t* code) {
  if (code[0] != 0xC4 || (code[1] & 31) != 2) return 0;
  const bool x = !(code[1] & 0x40), b = !(code[1] & 0x20);
  const int prefix = code[2] & 3, third = ~(code[2] >> 3) & 7, operation = code[3];
  const bool registers = code[4] >> 6 == 3;
  const int first = code[4] >> 3 & 7, second = code[4] & 7;
  if (operation == 0x49 && prefix == 0 && registers) return shapes = {}, 5;
  if (operation == 0x49 && prefix == 0) {
    const Operand from = memory(context, code + 4, x, b, code + 9);
    std::memcpy(&shapes, from.base, sizeof shapes);
    std::memset(tiles, 0, sizeof tiles);
    return 5 + from.length;
  }
  if (operation != 0x49 && operation != 0x4B && operation != 0x5C) return 0;
  if (shapes.palette != 1) fail("tiles before their shapes\n");
  if (operation == 0x49 && prefix == 3 && registers) return std::memset(&tiles[first], 0, sizeof(Tile)), 5;
  if (operation == 0x5C && prefix == 2 && registers) return multiply_add(first, second, third), 5;
  if (operation != 0x4B || registers) return 0;
  const Operand at = memory(context, code + 4, x, b, nullptr);
  for (int row = 0; row < shapes.rows[first]; ++row) {
    uint8_t *there = at.base + row * at.stride, *here = tiles[first].bytes[row];
    if (prefix == 2) std::memcpy(there, here, shapes.bytes[first]);
    else std::memcpy(here, there, shapes.bytes[first]);
  }
  return 5 + at.length;
}

void refused(int, siginfo_t*, void* at) {
  auto* context = static_cast<ucontext_t*>(at);
  auto& next = context->uc_mcontext.gregs[REG_RIP];
  const int length = run(*context, reinterpret_cast<const uint8_t*>(next));
  if (length == 0) fail("an instruction that this CPU lacks\n");
  next += length;
}

__attribute__((constructor)) void install() {
  struct sigaction action = {};
  action.sa_sigaction = refused;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace

extern "C" int tiles_multiplied() { return multiplied; }

extern "C" long syscall(long number, ...) {
  long given[6];
  va_list rest;
  va_start(rest, number);
  for (long& one : given) one = va_arg(rest, long);
  va_end(rest);
  if (number == SYS_arch_prctl && given[0] == 0x1023) return 0;
  using Call = long (*)(long, ...);
  static const auto call = reinterpret_cast<Call>(dlsym(RTLD_NEXT, "syscall"));
  return call(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}
