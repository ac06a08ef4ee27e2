// Kernels of a CUDA module: for every SNN_SPEC(name, lanes, ...) in SNN_SPECS, name_forward and name_backward.
#include "grid.cuh"

// 128 threads a block, of which three must fit: without that, ptxas spills to make room for more.
#define SNN_KERNEL(name, direction, lanes, ...)                                                           \
    extern "C" __global__ void __launch_bounds__(128, 3) name##_##direction(const snn::Arguments a) {     \
        using S = __VA_ARGS__;                                                                            \
        SNN_CELLS(direction, lanes, a, S)                                                                 \
    }
#define SNN_FORWARD(name, lanes, ...) SNN_KERNEL(name, forward, lanes, snn::Spec<__VA_ARGS__>::ahead)
#define SNN_BACKWARD(name, lanes, ...) SNN_KERNEL(name, backward, lanes, snn::Spec<__VA_ARGS__>)
#define SNN_SPEC(name, lanes, ...) SNN_FORWARD(name, lanes, __VA_ARGS__) SNN_BACKWARD(name, lanes, __VA_ARGS__)
SNN_SPECS
