// A first-order linear recurrence over rows: what walks through the samples of a stream one by one. In double.
#pragma once
#include <cstdint>

namespace bn {

// out[t] = gain[t] * out[t - 1] + x[t], out[-1] = start, for rows of c values; gain has one value a row, or c. A gain of 0
// leaves out what was before, be it NaN or infinite.
inline void recurrence(int64_t rows, int64_t c, const double* x, const double* gain, bool wide_gain, const double* start,
                       double* out) {
    const double* before = start;
    for (int64_t t = 0; t < rows; ++t) {
        const double* a = wide_gain ? gain + t * c : gain + t;
        double* to = out + t * c;
        if (wide_gain) for (int64_t i = 0; i < c; ++i) to[i] = (a[i] == 0 ? 0 : a[i] * before[i]) + x[t * c + i];
        else for (int64_t i = 0; i < c; ++i) to[i] = (*a == 0 ? 0 : *a * before[i]) + x[t * c + i];
        before = to;
    }
}

}  // namespace bn
