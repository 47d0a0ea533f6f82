// Averages over past batches: what pooled and windowed statistics, MABN, PowerNorm and Unified Normalization keep. In
// double; the buffers are float or double as they are stored.
#pragma once
#include <cmath>
#include <cstdint>

#include "update.h"

namespace bn {

enum Kept : int { kNothing = 0, kPooled = 1, kWindow = 2, kMabn = 3, kPower = 4, kUnified = 5 };

struct Averages {
    int kind = kNothing;
    int64_t size = 1;  // batches of a window, the present one included
    int64_t warmup = 0, correct_after = 0;
    double decay = 0;  // of what backward remembers
    double r_max = 1;
    bool total = false;
    int correction = 1;
    bool normalises() const { return kind >= kMabn; }
};

// The buffers: pooled count; window of means, of variances, of counts; or window (forward), window (backward), average.
struct Memory {
    void *a = nullptr, *b = nullptr, *c = nullptr;
    int64_t *seen_a = nullptr, *seen_b = nullptr;
    bool wide = false;
    double get(const void* p, int64_t i) const {
        return wide ? static_cast<const double*>(p)[i] : static_cast<double>(static_cast<const float*>(p)[i]);
    }
    void set(void* p, int64_t i, double v) const {
        if (wide) static_cast<double*>(p)[i] = v;
        else static_cast<float*>(p)[i] = static_cast<float>(v);
    }
};

struct OfChannel { double n, mean, m2; };

inline OfChannel pooled_channel(const Shape& q, const double* saved, int64_t c) {
    const int64_t all = q.groups * q.c;
    double n = 0, mean = 0, m2 = 0;
    for (int64_t at = c; at < all; at += q.c) {
        n += saved[kCount * all + at];
        mean += saved[kCount * all + at] * saved[kBatchMean * all + at];
    }
    mean /= n > 0 ? n : 1;
    for (int64_t at = c; at < all; at += q.c) {
        const double d = saved[kBatchMean * all + at] - mean;
        m2 += saved[kM2 * all + at] + saved[kCount * all + at] * d * d;
    }
    return {n, mean, m2};
}

// As move in update.h, for the estimators with a memory of their own; next has room for 2 C.
inline int move_remembering(const Spec& s, const Averages& k, const Memory& m, const Shape& q, const double* saved,
                            const Stored& to, double* next) {
    const int64_t C = q.c, rows = k.size;
    const double nan = std::nan("");
    bool present = true, finite = true;
    const double before = k.kind == kPooled ? *static_cast<const double*>(m.a) : 0;
    const int64_t seen = m.seen_a ? *m.seen_a : 0, slot = seen % rows;
    const double first = pooled_channel(q, saved, 0).n;
    // A row's weight; a count of 0 in a filled row is not known and weighs what the new batch weighs.
    auto weight = [&](int64_t r) -> double {
        if (r > seen) return 0;
        if (!k.total) return 1;
        const double count = m.get(m.c, r);
        return r == slot || count <= 0 ? first : count;
    };
    double sum = 0;
    if (k.kind == kWindow) for (int64_t r = 0; r < rows; ++r) sum += weight(r);
    auto batch_var = [&](const OfChannel& b, int correction) { return b.n > correction ? b.m2 / (b.n - correction) : nan; };
    for (int64_t c = 0; c < C; ++c) {
        const OfChannel b = pooled_channel(q, saved, c);
        double mean, var;
        if (k.kind == kPooled) {
            const double count = before + b.n, share = count > 0 ? b.n / count : 0;
            const double old = before > 0 ? to.get(to.mean, c) : b.mean, delta = (b.n > 0 ? b.mean : old) - old;
            const double left = before - k.correction, rest = count - k.correction;
            mean = old + (std::isfinite(delta) ? delta * share : b.mean);
            const double m2 = times(left > 0 ? left : 0, to.get(to.var, c)) + b.m2 + times(before * share, delta * delta);
            var = rest > 0 ? m2 / rest : nan;
        } else {
            const double own = batch_var(b, k.total ? 0 : k.correction);
            double x = 0, v = 0;
            for (int64_t r = 0; r < rows; ++r) x += times(weight(r), r == slot ? b.mean : m.get(m.a, r * C + c));
            mean = x / (sum > 0 ? sum : 1);
            for (int64_t r = 0; r < rows; ++r) {
                double spread = r == slot ? own : m.get(m.b, r * C + c);
                if (weight(r) == 0) continue;
                if (k.total) {
                    const double d = (r == slot ? b.mean : m.get(m.a, r * C + c)) - mean;
                    spread += d * d;
                }
                v += weight(r) * spread;
            }
            double over = sum > 0 ? sum : 1;
            if (k.total) over = sum > k.correction ? sum - k.correction : 1;
            var = v / over;
        }
        next[c] = mean;
        next[C + c] = var;
        present = present && b.n > 0;
        finite = finite && std::isfinite(b.mean) && std::isfinite(b.m2) && std::isfinite(var);
    }
    if (s.nonfinite == kRaise && present && !finite) return kNotFinite;
    if (!present || (s.nonfinite != kPropagate && !finite)) return kSkipped;
    for (int64_t c = 0; c < C; ++c) {
        to.set(to.mean, c, next[c]);
        to.set(to.var, c, next[C + c]);
        if (k.kind != kWindow) continue;
        const OfChannel b = pooled_channel(q, saved, c);
        m.set(m.a, slot * C + c, b.mean);
        m.set(m.b, slot * C + c, batch_var(b, k.total ? 0 : k.correction));
    }
    if (k.kind == kPooled) *static_cast<double*>(m.a) = before + first;
    else {
        m.set(m.c, slot, first);
        *m.seen_a = seen + 1;
    }
    return kDone;
}

// Couplings: the second moment that normalises is own * E[x^2] + from[c], or the same of logarithms --------------------

// What the window holds without the batch: fills `from`, and says whether it is used at this step.
inline bool plan_average(const Averages& k, const Memory& m, int64_t C, int64_t step, const double* running, Plan& p,
                         double* from) {
    p.coupling = kAveraged;
    p.gain = 1;
    p.r_max = k.r_max;
    p.ratio = k.kind == kMabn && step > k.correct_after ? kOutputRatio : kNoRatio;
    for (int64_t c = 0; c < C; ++c) from[c] = 0;
    if (step <= k.warmup) return false;
    if (k.kind == kPower) {
        p.gain = 0;
        for (int64_t c = 0; c < C; ++c) from[c] = running[c];
        return true;
    }
    if (*m.seen_a < k.size - 1 || (k.kind == kMabn && k.size == 1)) return false;
    const double each = 1.0 / static_cast<double>(k.size);
    p.gain = each;
    if (k.kind == kMabn) {
        for (int64_t r = 0; r < k.size - 1; ++r)
            for (int64_t c = 0; c < C; ++c) from[c] += each * m.get(m.a, r * C + c);
        return true;
    }
    p.geometric = true;
    p.ratio = kGradientRatio;
    for (int64_t r = 0; r < k.size; ++r) {
        if (r >= *m.seen_a || r == *m.seen_a % k.size) continue;
        for (int64_t c = 0; c < C; ++c) {
            from[c] += each * std::log(m.get(m.a, r * C + c));
        }
    }
    return true;
}

inline void push(const Memory& m, void* ring, int64_t* seen, int64_t rows, int64_t C, const double* value) {
    for (int64_t c = 0; c < C; ++c) m.set(ring, *seen % rows * C + c, value[c]);
    ++*seen;
}

// The batch's second moment enters the window.
inline void remember_forward(const Averages& k, const Memory& m, const Shape& q, const double* saved, double* room) {
    const int64_t rows = k.kind == kMabn ? k.size - 1 : k.kind == kUnified ? k.size : 0;
    if (rows == 0) return;
    for (int64_t c = 0; c < q.c; ++c) {
        const OfChannel b = pooled_channel(q, saved, c);
        room[c] = b.m2 / b.n;
    }
    push(m, m.a, m.seen_a, rows, q.c, room);
}

// What stands for the mean of g * y in dx is own * psi + from[c], psi the batch's own; p.gain is own.
struct Pulled { bool active, outlier; };

inline Pulled plan_pull(const Averages& k, const Memory& m, int64_t C, int64_t step, bool forward_active, Plan& p,
                        double* from) {
    p.coupling = kAveraged;
    p.gain = 1;
    for (int64_t c = 0; c < C; ++c) from[c] = 0;
    if (step <= k.warmup) return {false, false};
    if (k.kind == kPower) {
        p.gain = 0;
        for (int64_t c = 0; c < C; ++c) from[c] = (1 - k.decay) * m.get(m.a, c);
        return {true, false};
    }
    if ((k.kind == kMabn && k.size == 1) || *m.seen_b < k.size - 1) return {false, false};
    const double each = 1.0 / static_cast<double>(k.size);
    if (k.kind == kMabn) {
        p.gain = each;
        for (int64_t r = 0; r < k.size - 1; ++r)
            for (int64_t c = 0; c < C; ++c) from[c] += each * m.get(m.b, r * C + c);
        return {true, false};
    }
    if (!forward_active && k.size > 1) return {false, true};
    p.gain = (1 - k.decay) * each;
    for (int64_t c = 0; c < C; ++c) from[c] = k.decay * m.get(m.c, c);
    for (int64_t r = 0; r < k.size; ++r) {
        if (r >= *m.seen_b || r == *m.seen_b % k.size) continue;
        for (int64_t c = 0; c < C; ++c) from[c] += p.gain * m.get(m.b, r * C + c);
    }
    return {true, false};
}

// What the batch's gradient leaves in the memory, unless it is not finite; room has place for 2 C.
inline void remember_backward(const Averages& k, const Memory& m, const Shape& q, const double* saved, const double* gamma,
                              const double* sum_g, const double* sum_gx, const Pulled& how, const Plan& p,
                              const double* from, double* room) {
    const int64_t C = q.c, all = q.groups * C;
    bool present = false;
    for (int64_t at = 0; at < all; ++at) {
        present = present || saved[kCount * all + at] > 0;
        if (!std::isfinite(sum_g[at]) || !std::isfinite(sum_gx[at])) return;
    }
    if (!present) return;
    for (int64_t c = 0; c < C; ++c) {
        double n = 0, psi = 0, left = 0;
        for (int64_t at = c; at < all; at += C) {
            const double count = saved[kCount * all + at], invstd = saved[kInvstd * all + at];
            if (!(count > 0)) continue;
            const double here = (gamma ? gamma[c] : 1) * saved[kRatio * all + at] * saved[kShare * all + at] * sum_gx[at];
            n += count;
            psi += here;
            if (k.kind == kPower) {
                const double held = (1 - k.decay) * m.get(m.a, c);
                left += here - times(held, saved[kM2 * all + at] * invstd * invstd);
            }
        }
        n = n > 0 ? n : 1;
        room[c] = psi / n;
        room[C + c] = left / n;
    }
    if (k.kind == kPower) {
        for (int64_t c = 0; c < C; ++c) m.set(m.a, c, m.get(m.a, c) + room[C + c]);
        return;
    }
    if (how.outlier) return;
    if (k.kind == kUnified) {
        // The average follows the window, or the batch's own correlation while the window is not used.
        for (int64_t c = 0; c < C; ++c) {
            const double moved = how.active ? from[c] + p.gain * room[c]
                                            : k.decay * m.get(m.c, c) + (1 - k.decay) * room[c];
            m.set(m.c, c, moved);
        }
    }
    const int64_t rows = k.kind == kMabn ? k.size - 1 : k.size;
    if (rows > 0) push(m, m.b, m.seen_b, rows, C, room);
}

}  // namespace bn
