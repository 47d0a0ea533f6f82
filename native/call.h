// What one call of a pass knows: pointers, sizes, and the rows of channel vectors it fills.
#pragma once
#include <cstdint>

namespace bn {

enum DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

enum Activation : int { kNone = 0, kRelu = 1, kLeakyRelu = 2, kRelu6 = 3, kSilu = 4, kHardswish = 5, kGelu = 6 };

// Where the backward finds the sign that the activation saw, and the data.
enum Source : int {
    kRecompute = 0,  // the sign from x, by the same arithmetic as forward
    kOutput = 1,     // the sign from the saved output (a residual was added)
    kInvert = 2,     // no x at all: the output is inverted (in-place form)
};

// Rows of `saved`, each groups x channels of double.
enum Row : int {
    kCount = 0,
    kCountSquared,
    kBatchMean,
    kM2,
    kMean,  // taken off in the forward
    kInvstd,
    kCentre,  // about which the variance's share was taken
    kShare,   // share of the batch in the variance, over the count
    kRatio,
    kOffset,
    kScale,  // scale and shift of the output
    kShift,
    kFollow,  // scales the gradient as the ratio does, and not the output
    kRows,
};

// (N, C, S) contiguous when last is false; (N, S, C) with channels innermost when it is true.
struct Shape {
    int64_t n, c, s;
    int64_t groups;
    bool last;
};

// What normalises, in numbers; layers/rule.py says what each of them is.
struct Numbers {
    double mean, share, spread;
    bool log;
    double low, high;
    bool quiet;
    double shift;
};

// The next running statistics, likewise.
struct Move {
    double gain, q, p, r;
    bool root;
    int correction;
};

// What takes the place of the derivative in u and v.
struct Pulled {
    bool given;
    double own_u, own_v;
    const double *base_u, *base_v;  // as the vectors below
};

struct Plan {
    Numbers numbers;
    double eps;
    bool centred;                  // else moments are about zero
    bool stored;                   // the population alone, which no moments are asked for
    bool reduced;                  // saved has the moments already
    bool planned;                  // saved has mean, scale and shift of the output already
    bool summed;                   // sum_g and sum_gx are given
    bool by_group;                 // the vectors have groups x C values, not C
    const double *pm, *pv, *rest;  // null is 0
    Pulled pull;
};

// What a group's values weigh, the same for all channels, and the sum of the squares: in double, since a correction may
// leave little of it.
struct Count { double n, n2; };

struct Call {
    int dtype;
    Shape shape;
    int threads;
    // Tensors of the data's dtype.
    const void* x;
    const void* g;
    const void* y_in;  // the saved output, for the backward
    const void* residual;
    void* out;           // y or dx; of stored statistics null asks for the channel vectors alone
    void* out_residual;  // the residual's gradient
    // Sample weights (n x s), float, or double for double data; null without.
    const void* weights;
    const Count* counts;  // what each group's weigh; null without
    // Channel vectors.
    const double* gamma;  // C, or null
    const double* beta;
    double* saved;  // kRows rows of groups x C
    // Rows of groups x C: the backward's sums, and what else may be given.
    double* sum_g;
    double* sum_gx;
    const double* pull[4];  // centre, scale, u and v of the gradient, where they are given
    Plan plan;
    int activation;
    int source;
    double slope;
    double* scratch;  // see scratch_doubles
    bool wants_dx, wants_sums;
    bool streams;  // the output is larger than what the cache would hold for its reader
};

// The entry points of one instruction set.
struct Table {
    const char* name;
    void (*forward)(const Call&);
    void (*backward)(const Call&);
    void (*reduce)(const Call&);
};

const Table& table_base();
const Table& table_avx2();
const Table& table_avx512();

// A weight of 0 leaves the value out, be it NaN or infinite.
static inline double times(double weight, double v) { return weight == 0 ? 0 : weight * v; }

// Of a reduction: squares that are infinite already are those of infinite values, which have no variance.
static inline double about_zero(double n, double mean, double m2) {
    return m2 - m2 == 0 || m2 != m2 ? m2 + n * mean * mean : m2;
}
static inline double about_mean(double mean, double m2) { return mean - mean == 0 ? m2 : __builtin_nan(""); }

struct Range { int64_t first, last; };

// Samples are split evenly, larger groups first.
static inline Range group_range(const Shape& q, int64_t group) {
    const int64_t small = q.n / q.groups, extra = q.n % q.groups;
    const int64_t first = group * small + (group < extra ? group : extra);
    return {first, first + small + (group < extra ? 1 : 0)};
}

// By four sums each, since one would wait for itself at every value.
template <class A> static inline void weigh(const Shape& q, const A* w, Count* counts) {
    for (int64_t g = 0; g < q.groups; ++g) {
        const Range range = group_range(q, g);
        double n[4] = {}, n2[4] = {};
        for (int64_t i = range.first * q.s; i < range.last * q.s; ++i) {
            const double v = static_cast<double>(w[i]);
            n[i & 3] += v;
            n2[i & 3] += v * v;
        }
        counts[g] = {(n[0] + n[1]) + (n[2] + n[3]), (n2[0] + n2[1]) + (n2[2] + n2[3])};
    }
}

// Blocks are the units of merging; their number depends on the shape alone.
struct Blocks {
    int64_t count;    // of one group (the larger one)
    int64_t size;     // rows (channels last) or samples or elements (contiguous) of one
    bool splits_row;  // contiguous: a block is a part of one sample's row
    int64_t per_row;
};

static inline Blocks blocks_of(const Shape& q) {
    const int64_t big = q.groups > 0 ? (q.n + q.groups - 1) / q.groups : q.n;
    Blocks b{};
    const int64_t target = 131072;
    if (q.last) {
        const int64_t rows = big * q.s;
        int64_t size = target / (q.c > 0 ? q.c : 1);
        const int64_t at_least = (rows + 63) / 64;
        if (size < at_least) size = at_least;
        if (size < 64) size = 64;
        b.size = size;
        b.count = (rows + size - 1) / size;
        b.per_row = 1;
    } else if (q.s > target) {
        b.splits_row = true;
        b.per_row = (q.s + target - 1) / target;
        b.size = (q.s + b.per_row - 1) / b.per_row;
        b.count = b.per_row * big;
    } else {
        const int64_t rows = q.s > 0 ? target / q.s : 1;
        b.size = rows < 1 ? 1 : rows;
        b.count = (big + b.size - 1) / b.size;
        b.per_row = 1;
    }
    if (b.count < 1) b.count = 1;
    return b;
}

// Doubles of scratch that any pass needs: five numbers a block and channel, and float copies of vectors.
static inline int64_t scratch_doubles(const Shape& q) {
    const Blocks b = blocks_of(q);
    return q.groups * b.count * (5 * q.c + 4) + 8 * q.groups * q.c + 64;
}

}  // namespace bn
