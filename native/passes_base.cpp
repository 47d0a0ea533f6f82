#define BN_NS base
#include "passes.inl"

namespace bn {
const Table& table_base() {
    static const Table table{"base", base::forward, base::backward, base::reduce};
    return table;
}
}  // namespace bn
