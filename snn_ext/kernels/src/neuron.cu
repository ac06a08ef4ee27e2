// Kernels of a CUDA module: for every SNN_SPEC(name, ...) in SNN_SPECS, name_forward and name_backward.
#include "grid.cuh"

#define SNN_SPEC(name, ...)                                                                  \
    extern "C" __global__ void __launch_bounds__(128) name##_forward(const snn::Arguments a) { \
        SNN_NEURONS(n, a) snn::Cell<snn::Spec<__VA_ARGS__>>(a, n).forward();                 \
    }                                                                                        \
    extern "C" __global__ void __launch_bounds__(128) name##_backward(const snn::Arguments a) { \
        SNN_NEURONS(n, a) snn::Cell<snn::Spec<__VA_ARGS__>>(a, n).backward();                \
    }
SNN_SPECS
