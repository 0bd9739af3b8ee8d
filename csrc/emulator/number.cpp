#include "emulator/number.h"

namespace emulator {

const std::array<float, 65536>& fp16_table() {
    static const auto table = [] {
        std::array<float, 65536> values;
        for (uint32_t bits = 0; bits < values.size(); ++bits) {
            const uint16_t pattern = static_cast<uint16_t>(bits);
            _Float16 number;
            std::memcpy(&number, &pattern, sizeof(number));
            values[bits] = static_cast<float>(number);
        }
        return values;
    }();
    return table;
}

}  // namespace emulator
