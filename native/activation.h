// What follows the affine output in the same loop: activations, and the gradient behind them.
#pragma once
#include <cmath>

#include "vec.h"

namespace bn {
namespace BN_NS {

// The loops are compiled for no activation and for relu, and once for all others, which they tell apart by number.
constexpr int kCalled = 100;

typedef int32_t VI __attribute__((vector_size(BN_BYTES)));

// 2 ** n for -126 <= n <= 127.
BN_INLINE VF power_of_two(VI n) { return (VF)((n + 127) << 23); }

// Cody and Waite's reduction and a polynomial; within 1.5 units in the last place. Two factors, since one would
// overflow before the result does.
BN_INLINE VF exponential(VF x) {
    x = x > 90.0f ? splat(90.0f) : x < -110.0f ? splat(-110.0f) : x;
    const VF magic = splat(0x1.8p23f), shifted = x * 0x1.715476p0f + magic, whole = shifted - magic;
    const VI n = (VI)shifted - (VI)magic, half = n >> 1;
    const VF r = (x - whole * 0x1.62e4p-1f) - whole * 0x1.7f7d1cp-20f;
    VF p = r * 1.9875691e-4f + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665795e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 5.0000001e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * power_of_two(half) * power_of_two(n - half);
}

// exp(t * t / 2) times the normal distribution below -t, for t >= 0: a polynomial in (t - 4) / (t + 4), fitted to a
// relative error of 2e-8 up to 14.5, beyond which the density is 0.
BN_INLINE VF tail_over_density(VF t) {
    constexpr float c[] = {-6.528439553e-05f, -1.678252156e-04f, 6.577625754e-04f, 5.025509745e-04f,  -8.497917093e-03f,
                           3.086549975e-02f,  -7.170674205e-02f, 1.243792027e-01f, -1.703977436e-01f, 9.441064298e-02f};
    t = t > 15.0f ? splat(15.0f) : t;
    const VF u = (t - 4.0f) / (t + 4.0f);
    VF p = splat(c[0]);
#pragma GCC unroll 9
    for (int i = 1; i < 10; ++i) p = p * u + c[i];
    return p;
}

BN_INLINE VF logistic(VF x) { return 1.0f / (1.0f + exponential(-x)); }
BN_INLINE VD logistic(VD x) {
    VD s;
    for (int i = 0; i < width<double>(); ++i) s[i] = 1 / (1 + std::exp(-x[i]));
    return s;
}

// The normal distribution and its density.
BN_INLINE VF normal(VF x, VF& density) {
    const VF t = x < 0 ? -x : x, e = exponential(-0.5f * t * t), tail = e * tail_over_density(t);
    density = e * 0.398942280f;
    return x < 0 ? tail : 1.0f - tail;
}
BN_INLINE VD normal(VD x, VD& density) {
    VD p;
    for (int i = 0; i < width<double>(); ++i) {
        p[i] = 0.5 * std::erfc(-x[i] * 0.70710678118654752440);
        density[i] = 0.39894228040143267794 * std::exp(-0.5 * x[i] * x[i]);
    }
    return p;
}

template <class V> BN_LOOP V activate(int kind, V y) {
    V density;
    switch (kind) {
        case kRelu6: return y < 0 ? V{} : y > 6 ? V{} + 6 : y;
        case kSilu: return y * logistic(y);
        case kHardswish: return y * (y < -3 ? V{} : y > 3 ? V{} + 6 : y + 3) / 6;
        default: return y * normal(y, density);
    }
}

// The activation's derivative; at its corners as torch's, whose relu6 and hardswish know two answers for NaN.
template <class V> BN_LOOP V slope_at(int kind, V y) {
    const V one = V{} + 1;
    V density;
    switch (kind) {
        case kRelu6: return y > 0 ? y < 6 ? one : V{} : V{};
        case kSilu: {
            const V s = logistic(y);
            return s * (1 + y * (1 - s));
        }
        case kHardswish: return y <= -3 ? V{} : y >= 3 ? one : y / 3 + one / 2;
        default: {
            const V below = normal(y, density);
            return below + y * density;
        }
    }
}

template <int ACT, class V, class A> BN_INLINE V activated(V y, A slope, int kind) {
    if (ACT == kRelu) return where_positive(y, y);
    if (ACT == kCalled) return kind == kLeakyRelu ? (y <= 0 ? y * slope : y) : activate(kind, y);
    return y;
}

// The gradient behind the activation, by what the activation was given or (where its sign tells) returned, as it is
// stored in T: relu's passes where that is NaN, leaky relu's is scaled there, as torch's are.
template <int ACT, class T, class V, class A> BN_INLINE V gated(V g, V y, A slope, int kind) {
    if (ACT == kRelu) return where_above(y, Underflow<T>::limit, g);
    if (ACT == kLeakyRelu || (ACT == kCalled && kind == kLeakyRelu)) return y > Underflow<T>::limit ? g : g * slope;
    if (ACT == kCalled) return g * slope_at(kind, y);
    return g;
}

}  // namespace BN_NS
}  // namespace bn
