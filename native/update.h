// How the running statistics move: the averages that need nothing but momentum and a counter. In double.
#pragma once
#include <cmath>
#include <cstdint>

#include "call.h"

namespace bn {

// Relative: sums of weights are known to no more digits.
constexpr double kSameWeight = 1e-6;

enum Gain : int { kConstant = 0, kOneOverStep = 1, kDebiased = 2, kFalling = 3 };
enum NonFinite : int { kSkip = 0, kPropagate = 1, kRaise = 2 };
// What a forward reports.
enum Status : int { kDone = 0, kSkipped = 1, kTooFew = 2, kNotFinite = 4 };

struct Spec {
    int coupling = kBatch;
    double eps = 1e-5, r_max = 1, d_max = 0;
    int schedule = 0;  // of the limits: none, "paper", "crossq"
    bool detached = false;
    int activation = kNone;
    double slope = 0;
    int gain = kConstant;
    double momentum = 0.1;
    bool sigma = false, total = false;
    int correction = 1;
    bool reliability = false;
    int nonfinite = kSkip;
    double power = 1;  // of a falling gain
};

inline double gain_of(const Spec& s, int64_t step) {
    if (s.gain == kOneOverStep) return 1.0 / static_cast<double>(step);
    if (s.gain == kFalling) {
        const double a = s.momentum / std::pow(static_cast<double>(step), s.power);
        return a < 1 ? a : 1;
    }
    if (s.gain == kDebiased) {
        const double left = std::pow(1 - s.momentum, static_cast<double>(step));
        return s.momentum > 0 ? s.momentum / (left < 1 ? 1 - left : 1.0) : 0.0;
    }
    return s.momentum;
}

inline double between_0_and_1(double v) { return v < 0 ? 0 : v > 1 ? 1 : v; }

// The limits of Batch Renormalization after `done` steps.
inline void limits_of(const Spec& s, double done, double& r_max, double& d_max) {
    r_max = s.r_max;
    d_max = s.d_max;
    if (s.schedule == 1) {
        r_max = between_0_and_1((done - 5000) / 35000) * (s.r_max - 1) + 1;
        d_max = between_0_and_1((done - 5000) / 20000) * s.d_max;
    } else if (s.schedule == 2 && done < 100000) {
        r_max = 1;
        d_max = 0;
    }
}

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

// Pools the groups and moves mean and variance, unless the batch may not enter; next has room for 2 C.
inline int move(const Spec& s, const Shape& q, const double* saved, const Stored& to, double a, double* next) {
    const int64_t all = q.groups * q.c;
    bool present = true, finite = true;
    for (int64_t c = 0; c < q.c; ++c) {
        double n = 0, n2 = 0, mean = 0, m2 = 0;
        for (int64_t g = 0; g < q.groups; ++g) {
            const int64_t at = g * q.c + c;
            n += saved[kCount * all + at];
            n2 += saved[kCountSquared * all + at];
            mean += saved[kCount * all + at] * saved[kBatchMean * all + at];
        }
        mean /= n > 0 ? n : 1;
        for (int64_t g = 0; g < q.groups; ++g) {
            const int64_t at = g * q.c + c;
            const double d = saved[kBatchMean * all + at] - mean;
            m2 += saved[kM2 * all + at] + saved[kCount * all + at] * d * d;
        }
        const double unit = s.reliability ? n2 / (n > 0 ? n : 1) : 1;
        const double rest = n - s.correction * unit;
        const double batch_var = rest > (s.reliability ? kSameWeight * n : 0) ? m2 / rest : std::nan("");
        const double old_mean = to.get(to.mean, c), old_var = to.get(to.var, c);
        double var;
        if (s.sigma) {
            const double sigma = times(1 - a, std::sqrt(old_var + s.eps)) + times(a, std::sqrt(batch_var + s.eps));
            var = sigma * sigma - s.eps;
            if (var < 0) var = 0;
        } else {
            var = times(1 - a, old_var) + times(a, batch_var);
            if (s.total) var += times(a * (1 - a), (mean - old_mean) * (mean - old_mean));
        }
        next[c] = times(1 - a, old_mean) + times(a, mean);
        next[q.c + c] = var;
        present = present && n > 0;
        finite = finite && std::isfinite(mean) && std::isfinite(m2) && std::isfinite(var);
    }
    if (s.nonfinite == kRaise && present && !finite) return kNotFinite;
    if (!present || (s.nonfinite != kPropagate && !finite)) return kSkipped;
    for (int64_t c = 0; c < q.c; ++c) {
        to.set(to.mean, c, next[c]);
        to.set(to.var, c, next[q.c + c]);
    }
    return kDone;
}

}  // namespace bn
