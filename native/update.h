// How the running statistics move, and whether a batch may enter them. In double.
#pragma once
#include <cmath>
#include <cstdint>

#include "call.h"

namespace bn {

// Relative: sums of weights are known to no more digits.
constexpr double kSameWeight = 1e-6;

enum NonFinite : int { kSkip = 0, kPropagate = 1, kRaise = 2 };
// What a forward reports; of a batch without values kEmpty, which is no batch that was skipped.
enum Status : int { kDone = 0, kSkipped = 1, kTooFew = 2, kNotFinite = 4, kEmpty = 8 };

// What a layer's choices come to in one step.
struct Spec {
    Numbers numbers;
    Move move;
    double eps;
    bool centred, stored;
    int activation;
    double slope;
    bool reliability;
    int nonfinite;
};

// Running vectors as they are stored, float or double.
struct Stored {
    void* mean;
    void* var;
    bool wide;
    double get(const void* p, int64_t i) const {
        return wide ? static_cast<const double*>(p)[i] : static_cast<double>(static_cast<const float*>(p)[i]);
    }
    void set(void* p, int64_t i, double v) const {
        if (wide) static_cast<double*>(p)[i] = v;
        else static_cast<float*>(p)[i] = static_cast<float>(v);
    }
};

// Pools the groups and moves mean and variance, unless the batch may not enter; next has room for 2 C. The batch joins
// `from` where that is given, else the running statistics.
inline int move(const Spec& s, const Shape& q, const double* saved, const Stored& to, const double* from_mean,
                const double* from_var, double* next) {
    const int64_t all = q.groups * q.c;
    const Move& k = s.move;
    bool present = true, finite = true;
    for (int64_t c = 0; c < q.c; ++c) {
        double n = 0, n2 = 0, mean = 0, m2 = 0;
        for (int64_t at = c; at < all; at += q.c) {
            n += saved[kCount * all + at];
            n2 += saved[kCountSquared * all + at];
            mean += saved[kCount * all + at] * saved[kBatchMean * all + at];
        }
        mean /= n > 0 ? n : 1;
        for (int64_t at = c; at < all; at += q.c) {
            const double d = saved[kBatchMean * all + at] - mean;
            m2 += saved[kM2 * all + at] + saved[kCount * all + at] * d * d;
        }
        const double unit = s.reliability ? n2 / (n > 0 ? n : 1) : 1;
        const double rest = n - k.correction * unit;
        const double batch_var = rest > (s.reliability ? kSameWeight * n : 0) ? m2 / rest : std::nan("");
        const double old_mean = from_mean ? from_mean[c] : to.get(to.mean, c);
        const double old_var = from_var ? from_var[c] : to.get(to.var, c);
        double var;
        if (k.root) {
            const double sigma = times(k.q, std::sqrt(old_var + s.eps)) + times(k.p, std::sqrt(batch_var + s.eps));
            var = sigma * sigma - s.eps;
            if (var < 0) var = 0;
        } else {
            var = times(k.q, old_var) + times(k.p, batch_var);
            if (k.r != 0) var += times(k.r, (mean - old_mean) * (mean - old_mean));
        }
        next[c] = times(1 - k.gain, old_mean) + times(k.gain, mean);
        next[q.c + c] = var;
        present = present && n > 0;
        finite = finite && std::isfinite(mean) && std::isfinite(m2) && std::isfinite(var);
    }
    if (!present) return kEmpty;
    if (!finite && s.nonfinite != kPropagate) return s.nonfinite == kRaise ? kNotFinite : kSkipped;
    for (int64_t c = 0; c < q.c; ++c) {
        to.set(to.mean, c, next[c]);
        to.set(to.var, c, next[q.c + c]);
    }
    return kDone;
}

}  // namespace bn
