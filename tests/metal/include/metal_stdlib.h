// What SPIRV-Cross's compute kernels use of Metal's standard library, for g++. What is missing does not compile.
#pragma once

#include "threadgroups.h"

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;

#define kernel static
#define device
#define constant const
#define threadgroup_barrier(flags) emulator::barrier(metal::orders_threadgroup_memory(flags), __LINE__)

namespace metal {

struct uint3 {
    uint x, y, z;
    constexpr explicit uint3(uint x, uint y = 1, uint z = 1) : x(x), y(y), z(z) {}
};

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
inline bool orders_threadgroup_memory(mem_flags flags) { return int(flags) & int(mem_flags::mem_threadgroup); }

template <class T, class U> T as_type(U from) {
    static_assert(sizeof(T) == sizeof(U), "as_type between types of different sizes");
    T to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
template <class T, class U> T as_type(emulator::Element<U> from) { return as_type<T>(static_cast<U>(from)); }

#define NUMERIC(T)                                                             \
    inline T min(T a, T b) { return b < a ? b : a; }                           \
    inline T max(T a, T b) { return a < b ? b : a; }                           \
    inline T clamp(T x, T low, T high) { return min(max(x, low), high); }      \
    inline T select(T a, T b, bool second) { return second ? b : a; }
NUMERIC(int) NUMERIC(uint) NUMERIC(long) NUMERIC(ulong) NUMERIC(float) NUMERIC(half)
#undef NUMERIC

inline int abs(int x) { return x < 0 ? -x : x; }
inline half fma(half a, half b, half c) { return half(__builtin_fmaf(a, b, c)); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }

#define OF_FLOAT(name, builtin) \
    inline float name(float x) { return builtin(x); }
OF_FLOAT(abs, __builtin_fabsf)
OF_FLOAT(ceil, __builtin_ceilf)
OF_FLOAT(cos, __builtin_cosf)
OF_FLOAT(exp, __builtin_expf)
OF_FLOAT(exp2, __builtin_exp2f)
OF_FLOAT(floor, __builtin_floorf)
OF_FLOAT(log, __builtin_logf)
OF_FLOAT(rint, __builtin_rintf)
OF_FLOAT(sin, __builtin_sinf)
OF_FLOAT(sqrt, __builtin_sqrtf)
OF_FLOAT(tanh, __builtin_tanhf)
#undef OF_FLOAT

namespace fast {
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
}  // namespace fast
namespace precise = fast;

enum memory_order { memory_order_relaxed };

#define ATOMIC_TYPE(name, T)                                                                                      \
    struct name {                                                                                                 \
        typedef T value;                                                                                          \
        T v;                                                                                                      \
    };                                                                                                            \
    inline T atomic_exchange_with(name* p, T value) {                                                             \
        T before = p->v;                                                                                          \
        p->v = value;                                                                                             \
        return before;                                                                                            \
    }                                                                                                             \
    inline T atomic_fetch_add_explicit(name* p, T x, memory_order) { return atomic_exchange_with(p, p->v + x); }   \
    inline T atomic_fetch_sub_explicit(name* p, T x, memory_order) { return atomic_exchange_with(p, p->v - x); }   \
    inline T atomic_fetch_or_explicit(name* p, T x, memory_order) { return atomic_exchange_with(p, p->v | x); }    \
    inline T atomic_fetch_and_explicit(name* p, T x, memory_order) { return atomic_exchange_with(p, p->v & x); }   \
    inline T atomic_fetch_min_explicit(name* p, T x, memory_order) { return atomic_exchange_with(p, min(p->v, x)); } \
    inline T atomic_fetch_max_explicit(name* p, T x, memory_order) { return atomic_exchange_with(p, max(p->v, x)); }
ATOMIC_TYPE(atomic_int, int) ATOMIC_TYPE(atomic_uint, uint)
#undef ATOMIC_TYPE

}  // namespace metal
