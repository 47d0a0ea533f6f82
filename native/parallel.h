// A loop over threads of the OpenMP pool that torch uses; serial where the call or the process must be.
#pragma once
#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace bn {

template <class Body>
static inline void parallel(int threads, int64_t units, Body&& body) {
    if (threads > units) threads = static_cast<int>(units);
    if (threads <= 1) {
        for (int64_t i = 0; i < units; ++i) body(i);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
#endif
    for (int64_t i = 0; i < units; ++i) body(i);
}

}  // namespace bn
