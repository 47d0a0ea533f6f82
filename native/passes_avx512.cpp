#define BN_NS avx512
#include "passes.inl"

namespace bn {
const Table& table_avx512() {
    static const Table table{"avx512", avx512::forward, avx512::backward, avx512::reduce};
    return table;
}
}  // namespace bn
