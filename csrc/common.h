// Tensor access and vector arithmetic shared by the operators.
//
// Vectors are GCC/Clang vector extensions as wide as the machine's registers, so one source serves AVX-512, AVX2, NEON
// and the rest. Intrinsics appear only where the language has no word for the instruction.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace dllm {

using torch::stable::Tensor;

constexpr float kInf = std::numeric_limits<float>::infinity();

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vfloat __attribute__((vector_size(kLanes * 4)));
typedef int32_t vint __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vuint __attribute__((vector_size(kLanes * 4)));
typedef uint64_t vlong __attribute__((vector_size(kLanes * 4)));
typedef uint16_t vshort __attribute__((vector_size(kLanes * 2)));

typedef float vfloat8 __attribute__((vector_size(32)));
typedef float vfloat4 __attribute__((vector_size(16)));
typedef int32_t vint4 __attribute__((vector_size(16)));

template <typename Vector = vfloat>
Vector splat(float x) { return x - Vector{}; }  // unlike x + 0, which is 0 for -0, x - 0 needs no instruction

template <typename Vector = vfloat>
Vector load(const float* p) { Vector v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, vfloat v) { std::memcpy(p, &v, sizeof v); }
inline vfloat as_float(vint v) { return (vfloat)v; }  // the same bits
inline vint as_int(vfloat v) { return (vint)v; }

// Where `a` or `b` is NaN, `b`. (GCC makes two instructions of the comparison.)
#if defined(__AVX512F__)
inline vfloat max(vfloat a, vfloat b) { return _mm512_max_ps(a, b); }
inline vfloat min(vfloat a, vfloat b) { return _mm512_min_ps(a, b); }
#elif defined(__AVX2__)
inline vfloat max(vfloat a, vfloat b) { return _mm256_max_ps(a, b); }
inline vfloat min(vfloat a, vfloat b) { return _mm256_min_ps(a, b); }
#else
inline vfloat max(vfloat a, vfloat b) { return a > b ? a : b; }
inline vfloat min(vfloat a, vfloat b) { return a < b ? a : b; }
#endif

#if defined(__AVX512F__)
inline vfloat multiply_add(vfloat a, vfloat b, vfloat c) { return _mm512_fmadd_ps(a, b, c); }
#endif
#if defined(__AVX2__) && defined(__FMA__)
inline vfloat8 multiply_add(vfloat8 a, vfloat8 b, vfloat8 c) { return _mm256_fmadd_ps(a, b, c); }
inline vfloat4 multiply_add(vfloat4 a, vfloat4 b, vfloat4 c) { return _mm_fmadd_ps(a, b, c); }
#elif defined(__aarch64__)
inline vfloat4 multiply_add(vfloat4 a, vfloat4 b, vfloat4 c) {
  return (vfloat4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#elif !defined(__AVX512F__)
inline vfloat multiply_add(vfloat a, vfloat b, vfloat c) { return a * b + c; }
#endif

inline float largest(vfloat v) {
  float found = v[0];
  for (int i = 1; i < kLanes; ++i) found = v[i] > found ? v[i] : found;
  return found;
}

inline float sum(vfloat v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

inline bool any(vint mask) {
  int32_t found = 0;
  for (int i = 0; i < kLanes; ++i) found |= mask[i];
  return found != 0;
}

inline bool any_above(vfloat v, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(v, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_set1_ps(bound), _CMP_GT_OQ)) != 0;
#else
  bool any = false;
  for (int i = 0; i < kLanes; ++i) any |= v[i] > bound;
  return any;
#endif
}

// Lanes of `a` and `b` in turn, a0 b0 a1 b1 and so on: the lower half of them, or the upper.
template <bool kUpper, typename Vector, int... I>
Vector zip(Vector a, Vector b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I), first = kUpper ? n / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (first + I / 2 + I % 2 * n)...);
#else
  using Index = std::conditional_t<sizeof(a[0]) == 8, vlong, vint>;
  return __builtin_shuffle(a, b, Index{(first + I / 2 + I % 2 * n)...});
#endif
}

template <bool kUpper, typename Vector>
Vector zip(Vector a, Vector b) {
  return zip<kUpper>(a, b, std::make_integer_sequence<int, sizeof(Vector) / sizeof(a[0])>());
}

// e^x for x <= 80, relative error below 2^-22; below -87 the result stays at e^-87, which no float32 sum can see.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 p(r), p of degree 4 with a relative error of 4e-9 at most.
inline vfloat exponential(vfloat x) {
  const vfloat shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = max(x, splat(-87.0f));
  const vfloat shifted = multiply_add(x, splat(1.44269504f), shift);
  const vfloat n = shifted - shift;
  vfloat r = multiply_add(n, splat(-0.693359375f), x);
  r = multiply_add(n, splat(2.12194440e-4f), r);
  vfloat p = splat(1.381454058e-3f);
  p = multiply_add(p, r, splat(8.368745446e-3f));
  p = multiply_add(p, r, splat(4.166838899e-2f));
  p = multiply_add(p, r, splat(1.666652113e-1f));
  p = multiply_add(p, r, splat(4.999999404e-1f));
  p = multiply_add(p, r * r, r + 1.0f);
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else
  return (vfloat)((vint)p + ((vint)shifted << 23));  // the low bits of `shifted` hold n
#endif
}

struct Tanh {
  vfloat value, slope;  // slope: 1 - tanh^2 x
};

// The value is an odd polynomial up to 0.625 (relative error 5e-9), (1 - E) / (1 + E) beyond, with E = e^-2|x|. The slope
// is 1 - value^2 up to there, where little is subtracted, and 4 E / (1 + E)^2 beyond, where 1 - value^2 would cancel.
// Relative errors: of the value below 2^-22, of the slope below 1.1 x 2^-23 up to 0.625 and 3 x 2^-23 beyond.
inline Tanh hyperbolic_tangent(vfloat x) {
  const vfloat square = x * x;
  vfloat p = splat(-5.704982901e-3f);
  p = multiply_add(p, square, splat(2.063908320e-2f));
  p = multiply_add(p, square, splat(-5.373971369e-2f));
  p = multiply_add(p, square, splat(1.333144218e-1f));
  p = multiply_add(p, square, splat(-3.333328194e-1f));
  const vfloat small = multiply_add(x * square, p, x);
  const vfloat size = as_float(as_int(x) & 0x7fffffff);
  const vfloat e = exponential(-2.0f * size), inverse = 1.0f / (1.0f + e);
  const vfloat large = as_float(as_int((1.0f - e) * inverse) | (as_int(x) & INT32_MIN));
  const vfloat slope = size < 0.625f ? multiply_add(-small, small, splat(1)) : 4.0f * e * inverse * inverse;
  return {x != x ? x : (size < 0.625f ? small : large), slope};
}

// kLanes numbers of each dtype, read as float32 and written rounded to nearest even (a NaN stays one if it is kNaN).
struct Float32 {
  using type = float;
  static constexpr type kNaN = std::numeric_limits<float>::quiet_NaN();
  static vfloat load(const type* p) { return dllm::load(p); }
  static void write(type* p, vfloat v) { store(p, v); }
};

struct BFloat16 {
  using type = uint16_t;
  static constexpr type kNaN = 0x7fc0;
  static vfloat load(const type* p) {
    vshort half;
    std::memcpy(&half, p, sizeof half);
    return (vfloat)(__builtin_convertvector(half, vuint) << 16);
  }
  static void write(type* p, vfloat v) {
    const vuint bits = (vuint)v;
    const vshort half = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, vshort);
    std::memcpy(p, &half, sizeof half);
  }
};

struct Float16 {
  using type = uint16_t;
  static constexpr type kNaN = 0x7e00;
  static vfloat load(const type* p) {
    vshort half;
    std::memcpy(&half, p, sizeof half);
    const vint bits = __builtin_convertvector(half, vint);
    const vint magnitude = (bits & 0x7fff) << 13;
    // 2^112 moves the exponent bias from 15 to 127 and normalises subnormal halves
    const vfloat finite = as_float(magnitude) * splat(0x1p112f);
    const vfloat special = as_float(magnitude | 0x7f800000);  // infinity, or NaN with its payload
    const vint value = magnitude >= (0x7c00 << 13) ? as_int(special) : as_int(finite);
    return as_float(value | ((bits & 0x8000) << 16));
  }
  static void write(type* p, vfloat v) {
#if defined(__AVX512F__)
    const __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(p, &half, sizeof half);
#elif defined(__AVX2__) && defined(__F16C__)
    const __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(p, &half, sizeof half);
#else
    for (int i = 0; i < kLanes; ++i) p[i] = c10::Half(v[i]).x;
#endif
  }
};

template <typename Dtype>
vfloat rounded(vfloat v) {
  typename Dtype::type numbers[kLanes];
  Dtype::write(numbers, v);
  return Dtype::load(numbers);
}

// The first `n` numbers of a vector, or all of them.
template <typename Dtype>
void write_few(typename Dtype::type* out, vfloat numbers, int64_t n) {
  if (n >= kLanes) return Dtype::write(out, numbers);
  typename Dtype::type few[kLanes];
  Dtype::write(few, numbers);
  std::memcpy(out, few, n * sizeof *few);
}

// float32 numbers as `n` of the dtype. What lies behind them may be read, and is not written.
template <typename Dtype>
void write_all(typename Dtype::type* out, const float* in, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Dtype::write(out + i, load(in + i));
  if (i < n) write_few<Dtype>(out + i, load(in + i), n - i);
}

// Calls `use` with the dtype of `t`.
template <typename Use>
void with_dtype_of(const Tensor& t, const Use& use) {
  using torch::headeronly::ScalarType;
  switch (t.scalar_type()) {
    case ScalarType::Float: return use(Float32());
    case ScalarType::BFloat16: return use(BFloat16());
    case ScalarType::Half: return use(Float16());
    default: STD_TORCH_CHECK(false, "the dtype must be float32, bfloat16 or float16");
  }
}

// A per-row argument: its pointer and stride (0 when one value serves every row).
template <typename T>
struct PerRow {
  const T* data = nullptr;
  int64_t stride = 0;

  PerRow() = default;
  explicit PerRow(const Tensor& t)
      : data(static_cast<const T*>(t.const_data_ptr())), stride(t.size(0) > 1 ? t.stride(0) : 0) {}
  explicit PerRow(const std::optional<Tensor>& t) {
    if (t) *this = PerRow(*t);
  }
  explicit operator bool() const { return data != nullptr; }
  T operator[](int64_t row) const { return data[row * stride]; }
};

}  // namespace dllm
