// What the compilers disagree on (NVRTC, g++, clang++), and the arguments of a launch.
#pragma once

#ifdef __CUDACC__
#define SNN_INLINE __device__ __forceinline__
#else
#define SNN_INLINE inline __attribute__((always_inline))
#endif

namespace snn {

using i64 = long long;

// Bits of a float and back.
#ifdef __CUDACC__
SNN_INLINE unsigned bits(float f) { return __float_as_uint(f); }
SNN_INLINE float from_bits(unsigned u) { return __uint_as_float(u); }
#else
SNN_INLINE unsigned bits(float f) { unsigned u; __builtin_memcpy(&u, &f, 4); return u; }
SNN_INLINE float from_bits(unsigned u) { float f; __builtin_memcpy(&f, &u, 4); return f; }
#endif

// A parameter of neuron n: data[(n / inner) % period], or `value` for all where there is no data.
struct Parameter {
    const void* data;
    i64 inner;
    i64 period;
    double value;
};

// A tensor [T, N]: the neurons of a step are dense, steps are `step` elements apart.
struct Steps {
    void* data;
    i64 step;
};

// Mirrored field by field in abi.py. Null: not given, or not asked for.
struct Arguments {
    i64 steps;    // T
    i64 neurons;  // N
    i64 threads;  // host only
    i64 resume;   // whether `v` may owe a delayed reset

    Steps x;          // input
    Steps spikes;     // out
    Steps h;          // charged membranes: out in forward, in in backward (null: computed again from x)
    Steps membranes;  // out
    void* membrane;   // out [N]
    const void* v;    // carried membrane [N]
    Parameter v0;     // first membrane; added to `v` where both are given
    i64 has_v0;

    Parameter decay;  // decay, or the value of the leak
    Parameter gain;
    Parameter offset;
    Parameter threshold;
    Parameter folded;  // thresholds of a folded MPBN ...
    Parameter sign;    // ... and the side on which it fires
    Parameter scale;   // affine of the input; `*_step` elements from step to step
    Parameter shift;
    i64 scale_step;
    i64 shift_step;
    double rest;
    double surrogate_a;
    double surrogate_b;

    Steps grad_spikes;     // in, null: zero
    Steps grad_membranes;  // in, null: zero
    const void* grad_membrane;
    Steps grad_x;  // out
    void* grad_v;  // out [N], of the first membrane; [shared], summed over the batch, where shared is not 0
    void* grad_decay;      // out [N]
    void* grad_threshold;  // out [N]
    i64 shared;    // host only: neurons of a sample
    i64 unscaled;  // grad_x is that of the affine's output: the affine itself is learned
};

}  // namespace snn
