// Entry points of a host library: for every SNN_SPEC(name, ...) in SNN_SPECS, name_forward and name_backward.
#include <cstdlib>
#include "lanes.cuh"

namespace snn {

constexpr i64 SCRATCH = 256 << 10;  // bytes of h that are computed again, per thread; at least 64 lanes
constexpr i64 GRAIN = 32768;        // neuron-steps below which a second thread does not pay

// Memory of a thread for h, kept between calls.
struct Scratch {
    void* data = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(data); }
    void* get(size_t wanted) {
        if (wanted > size) {
            std::free(data);
            data = std::malloc(wanted);
            size = data ? wanted : 0;
        }
        return data;
    }
};
inline thread_local Scratch scratch;

// Runs tiles of `neurons` neurons in all.
template <class Run> int tiles(const Arguments& a, i64 neurons, i64 lanes, Run run) {
    i64 count = (neurons + lanes - 1) / lanes;
    int failed = 0;
#ifdef _OPENMP
    i64 most = a.neurons * a.steps / GRAIN;
    int threads = int(a.threads < most ? a.threads : most);
    if (threads > 1 && count > 1) {
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
        for (i64 k = 0; k < count; ++k)
            failed |= run(k * lanes, int(lanes < neurons - k * lanes ? lanes : neurons - k * lanes));
        return failed;
    }
#endif
    for (i64 k = 0; k < count; ++k)
        failed |= run(k * lanes, int(lanes < neurons - k * lanes ? lanes : neurons - k * lanes));
    return failed;
}

template <class S, bool U> int forward(const Arguments& a) {
    return tiles(a, a.neurons, LANES, [&](i64 begin, int lanes) {
        forward_lanes<S, U>(a, begin, lanes);
        return 0;
    });
}

template <class S, bool U> int backward(const Arguments& a) {
    using R = typename S::state;
    i64 lanes = LANES, bytes = a.steps * i64(sizeof(R));
    if (!a.h.data && lanes * bytes > SCRATCH) lanes = SCRATCH / bytes < 64 ? 64 : SCRATCH / bytes / 64 * 64;
    return tiles(a, a.shared ? a.shared : a.neurons, lanes, [&](i64 begin, int count) {
        R* h = a.h.data ? nullptr : (R*)scratch.get(size_t(count * bytes));
        if (!a.h.data && !h) return 1;
        if (a.shared)
            backward_samples<S, U>(a, begin, count, h);
        else
            backward_lanes<S, U>(a, begin, count, h, a.grad_v ? (R*)a.grad_v + begin : nullptr);
        return 0;
    });
}

}  // namespace snn

// 0, or 1 if there is no memory.
#define SNN_SPEC(name, ...)                                                                          \
    extern "C" int name##_forward(const snn::Arguments* a) {                                         \
        using S = snn::Spec<__VA_ARGS__>::ahead;                                                     \
        return snn::uniform(*a) ? snn::forward<S, true>(*a) : snn::forward<S, false>(*a);            \
    }                                                                                                \
    extern "C" int name##_backward(const snn::Arguments* a) {                                        \
        using S = snn::Spec<__VA_ARGS__>;                                                            \
        return snn::uniform(*a) ? snn::backward<S, true>(*a) : snn::backward<S, false>(*a);          \
    }
SNN_SPECS

extern "C" long long snn_size() { return sizeof(snn::Arguments); }
extern "C" const char* snn_key() { return SNN_KEY; }
