// A loop over threads of the OpenMP pool that torch uses; serial where the call or the process must be.
#pragma once
#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bn {

// What this thread has streamed past the cache is seen by every other from here on.
static inline void streamed() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// Not a template, so that each body is compiled once and not for every way it may run.
static inline void run_units(int threads, int64_t units, void (*one)(const void*, int64_t), const void* body) {
    if (threads > units) threads = static_cast<int>(units);
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (int64_t i = 0; i < units; ++i) {
            one(body, i);
            streamed();
        }
        return;
    }
#endif
    for (int64_t i = 0; i < units; ++i) one(body, i);
    streamed();
}

template <class Body> static inline void parallel(int threads, int64_t units, const Body& body) {
    run_units(threads, units, [](const void* b, int64_t i) { (*static_cast<const Body*>(b))(i); }, &body);
}

}  // namespace bn
