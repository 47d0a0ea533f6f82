// What goes over rows of channel vectors: a first-order linear recurrence, which walks through the samples of a stream
// one by one, and the sum of a ring of past batches. In double.
#pragma once
#include <cmath>
#include <cstdint>

namespace bn {

// out[t] = gain[t] * out[t - 1] + x[t], out[-1] = start, for rows of c values; gain has one value a row, or c. A gain
// of 0 leaves out what was before, be it NaN or infinite.
inline void recurrence(int64_t rows, int64_t c, const double* x, const double* gain, bool wide_gain,
                       const double* start, double* out) {
    const double* before = start;
    for (int64_t t = 0; t < rows; ++t) {
        const double* a = wide_gain ? gain + t * c : gain + t;
        double* to = out + t * c;
        if (wide_gain)
            for (int64_t i = 0; i < c; ++i) to[i] = (a[i] == 0 ? 0 : a[i] * before[i]) + x[t * c + i];
        else
            for (int64_t i = 0; i < c; ++i) to[i] = (*a == 0 ? 0 : *a * before[i]) + x[t * c + i];
        before = to;
    }
}

// out = scale * the sum of the first rows but the one left out (below 0: of all), or of their logarithms.
template <class T>
void ring_sum(const T* ring, int64_t rows, int64_t c, int64_t left_out, double scale, bool log, double* out) {
    for (int64_t i = 0; i < c; ++i) out[i] = 0;
    for (int64_t t = 0; t < rows; ++t) {
        if (t == left_out) continue;
        const T* row = ring + t * c;
        if (log)
            for (int64_t i = 0; i < c; ++i) out[i] += std::log(static_cast<double>(row[i]));
        else
            for (int64_t i = 0; i < c; ++i) out[i] += static_cast<double>(row[i]);
    }
    for (int64_t i = 0; i < c; ++i) out[i] *= scale;
}

}  // namespace bn
