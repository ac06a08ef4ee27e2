// Kernels of a CUDA module: for every SNN_SPEC(name, lanes, ...) in SNN_SPECS, name_forward and name_backward.
#include "grid.cuh"

// Threads of a block, and blocks that must fit: without the second, ptxas spills to make room for more.
#define SNN_BOUNDS __launch_bounds__(128, 3)

#define SNN_SPEC(name, lanes, ...)                                                             \
    extern "C" __global__ void SNN_BOUNDS name##_forward(const snn::Arguments a) { \
        using S = snn::Spec<__VA_ARGS__>::ahead;                                               \
        SNN_CELLS(forward, lanes, a, S)                                                        \
    }                                                                                          \
    extern "C" __global__ void SNN_BOUNDS name##_backward(const snn::Arguments a) { \
        using S = snn::Spec<__VA_ARGS__>;                                                      \
        SNN_CELLS(backward, lanes, a, S)                                                       \
    }
SNN_SPECS
