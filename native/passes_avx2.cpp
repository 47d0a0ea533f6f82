#define BN_NS avx2
#include "passes.inl"

namespace bn {
const Table& table_avx2() {
    static const Table table{"avx2", avx2::forward, avx2::backward, avx2::reduce};
    return table;
}
}  // namespace bn
