// Statistics shared over processes: what a message holds, and what the sum of all messages comes to. In double, and
// in the order of the operations of layers/ranks.py: a rank without samples is served by those and must get the same
// bits, or it would decide otherwise.
#pragma once
#include <cmath>
#include <cstdint>

#include "call.h"

namespace bn {

// What the sum of messages tells besides its values, beside the other statuses.
enum SharedStatus : int { kOutOfStep = 8, kFar = 16 };

// A message: C first sums, C second sums, count and sum of squared weights, then 1, tag and its square.
struct Message {
    double* at;
    int64_t c;
    double* first() const { return at; }
    double* second() const { return at + c; }
    double* numbers() const { return at + 2 * c; }
    static int64_t size(int64_t c) { return 2 * c + 5; }

    void seal(double n, double n2, double tag) const {
        double* end = numbers();
        end[0] = n;
        end[1] = n2;
        end[2] = 1;
        end[3] = tag;
        end[4] = tag * tag;
    }

    // The sum over ranks of one tag alone: their variance is 0 and their mean is ours.
    bool in_step(double tag) const {
        const double* end = numbers();
        return end[3] == end[2] * tag && end[4] == end[2] * (tag * tag);
    }
};

// Sums of deviations from the shift and of their squares, from rows of count, squares, mean and m2.
inline void write_sums(const Message& to, const double* rows, const double* shift) {
    for (int64_t c = 0; c < to.c; ++c) {
        const double n = rows[kCount * to.c + c];
        const double away = n > 0 ? rows[kBatchMean * to.c + c] - shift[c] : 0;
        to.first()[c] = n * away;
        to.second()[c] = (n > 0 ? rows[kM2 * to.c + c] : 0) + n * (away * away);
    }
}

// The rows of all ranks' values, and the shift for the next batch; kFar where the shift cost digits.
inline int read_sums(const Message& from, double far, double rounding, double* shift, double* rows) {
    const double n = from.numbers()[0], safe = n > 0 ? n : 1;
    bool away = false;
    for (int64_t c = 0; c < from.c; ++c) {
        const double first = from.first()[c], distance = first / safe, mean = shift[c] + distance;
        double m2 = from.second()[c] - first * first / safe;
        if (m2 < 0) m2 = 0;
        const double noise = rounding * mean;
        away = away || (std::isfinite(distance) && distance * distance > far * (m2 / safe) + noise * noise);
        rows[kCount * from.c + c] = n;
        rows[kCountSquared * from.c + c] = from.numbers()[1];
        rows[kBatchMean * from.c + c] = mean;
        rows[kM2 * from.c + c] = m2;
        if (std::isfinite(mean)) shift[c] = mean;
    }
    return away ? kFar : 0;
}

// Plain batch normalisation with the pooled rows: the rest of `saved`.
inline void plan_batch(double* saved, int64_t channels, double eps, const double* gamma, const double* beta) {
    for (int64_t c = 0; c < channels; ++c) {
        const double n = saved[kCount * channels + c], invstd = 1 / std::sqrt(saved[kM2 * channels + c] / n + eps);
        saved[kMean * channels + c] = saved[kCentre * channels + c] = saved[kBatchMean * channels + c];
        saved[kInvstd * channels + c] = invstd;
        saved[kShare * channels + c] = 1 / n;
        saved[kRatio * channels + c] = 1;
        saved[kOffset * channels + c] = 0;
        saved[kScale * channels + c] = gamma ? invstd * gamma[c] : invstd;
        saved[kShift * channels + c] = beta ? beta[c] : 0;
    }
}

// dx = scale * g - (u + v * (x - mean)), from everybody's sums of g and g * xhat; three rows of C.
inline void pull_batch(const Message& from, const double* saved, const double* gamma, double* rows) {
    for (int64_t c = 0; c < from.c; ++c) {
        const double invstd = saved[kInvstd * from.c + c], scale = gamma ? invstd * gamma[c] : invstd;
        const double a = saved[kShare * from.c + c] * scale;
        rows[c] = scale;
        rows[from.c + c] = a * from.first()[c];
        rows[2 * from.c + c] = a * from.second()[c] * invstd;
    }
}

}  // namespace bn
