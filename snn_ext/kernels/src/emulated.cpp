// The device kernels on the CPU, thread after thread, for tests: every access to memory can be written down,
// and memory can be imaginary (reads give zero), so that sizes that no machine holds can be tried.
#include <cstddef>
#define SNN_EMULATED
#include "numbers.cuh"

struct Index { unsigned x; };
static Index blockIdx, threadIdx, blockDim, gridDim;

namespace snn {

struct Access {
    i64 address, bytes, is_store;
};
static Access* journal = nullptr;
static i64 capacity = 0, used = 0, misaligned = 0, imaginary = 0;

template <class T> inline void note(const T* p, i64 is_store) {
    misaligned += i64(p) % i64(alignof(T)) != 0;
    if (used < capacity) journal[used] = {i64(p), i64(sizeof(T)), is_store};
    ++used;
}
template <class T> inline T load(const T* p) {
    note(p, 0);
    T value = {};
    if (!imaginary) __builtin_memcpy(&value, p, sizeof(T));
    return value;
}
template <class T> inline void store(T* p, T value) {
    note(p, 1);
    if (!imaginary) __builtin_memcpy(p, &value, sizeof(T));
}

}  // namespace snn

#include "grid.cuh"

// Runs blocks first .. last - 1 of a grid.
#define SNN_LAUNCH(name, direction, lanes, ...)                                                          \
    extern "C" void name##_##direction(const snn::Arguments* arguments, unsigned grid, unsigned block,   \
                                       unsigned first, unsigned last) {                                  \
        using S = __VA_ARGS__;                                                                           \
        const snn::Arguments a = *arguments;                                                             \
        gridDim.x = grid, blockDim.x = block;                                                            \
        for (blockIdx.x = first; blockIdx.x < last; ++blockIdx.x)                                        \
            for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) SNN_CELLS(direction, lanes, a, S)  \
    }
#define SNN_SPEC(name, lanes, ...)                                      \
    SNN_LAUNCH(name, forward, lanes, snn::Spec<__VA_ARGS__>::ahead)     \
    SNN_LAUNCH(name, backward, lanes, snn::Spec<__VA_ARGS__>)
SNN_SPECS

extern "C" void snn_watch(snn::Access* to, long long size, long long unreal) {
    snn::journal = to, snn::capacity = size, snn::used = 0, snn::misaligned = 0, snn::imaginary = unreal;
}
extern "C" long long snn_used() { return snn::used; }
extern "C" long long snn_misaligned() { return snn::misaligned; }
extern "C" long long snn_size() { return sizeof(snn::Arguments); }
extern "C" const char* snn_key() { return SNN_KEY; }
