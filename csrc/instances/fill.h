// From calls to parameters.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "calls.h"
#include "params.h"
#include <ptx/launch.h>
#include <ptx/number.h>

namespace instances {

template <class T>
ptx::TensorMap map_of(const Tensor& tensor, int box_rows) {
    const auto element = std::is_same_v<T, ptx::bf16> ? ptx::Element::bf16 : ptx::Element::fp16;
    const auto& [batches, heads, rows, columns] = tensor.sizes;
    const auto& strides = tensor.strides;
    return ptx::make_tensor_map(element, reinterpret_cast<const void*>(tensor.address), {columns, rows, heads, batches},
                                {2 * strides[2], 2 * strides[1], 2 * strides[0]}, box_rows);
}

inline Rows rows_of(const Tensor& tensor) {
    return {reinterpret_cast<void*>(tensor.address), tensor.strides[0], tensor.strides[1], tensor.strides[2]};
}

inline Shape shape_of(const Tensor& query, const Tensor& key) {
    return {static_cast<int>(query.sizes[0]), static_cast<int>(query.sizes[1]),
            static_cast<int>(query.sizes[1] / key.sizes[1]), static_cast<int>(query.sizes[2]),
            static_cast<int>(key.sizes[2])};
}

// Bounds beyond any length are FAR.
inline core::Window window_of(const ScoreOptions& options) {
    static constexpr int64_t FAR = core::Window::FAR;
    const auto reach = [](int64_t side, int64_t offset) {
        return static_cast<int>(side < 0 ? FAR : std::clamp(side + offset, -FAR, FAR));
    };
    return {reach(options.left, -options.offset), reach(options.right, options.offset), 0};
}

inline Scores scores_of(const ScoreOptions& options, const CenterOptions& centers = {}) {
    return {options.scale,
            window_of(options),
            {static_cast<core::Centers::Gaussian>(centers.gaussian),
             reinterpret_cast<const core::Center*>(centers.rows), reinterpret_cast<const core::Range*>(centers.blocks),
             reinterpret_cast<float*>(centers.grad_center), reinterpret_cast<float*>(centers.grad_sigma)}};
}

inline ScoreExtras extras_of(const ExtraOptions& options) {
    ScoreExtras extras = {};
    extras.softcap = options.softcap;
    extras.mask_kind = options.mask.address == 0 ? ScoreExtras::NONE
                       : options.mask_bytes == 1 ? ScoreExtras::BOOL
                       : options.mask_bytes == 4 ? ScoreExtras::FLOAT
                                                 : ScoreExtras::SIXTEEN_BIT;
    extras.mask = reinterpret_cast<const void*>(options.mask.address);
    extras.mask_gradient = reinterpret_cast<float*>(options.mask_gradient.address);
    for (int i = 0; i < 4; ++i) {
        extras.mask_strides[i] = options.mask.strides[i];
        extras.gradient_strides[i] = options.mask_gradient.strides[i];
    }
    extras.seed = reinterpret_cast<const int64_t*>(options.seed);
    extras.dropout_threshold = static_cast<uint32_t>(options.dropout_threshold);
    extras.dropout_scale = options.dropout_scale;
    extras.first_key = options.first_key;
    return extras;
}

// Heads whose two tensors of `rows` rows fit in a good part of the second-level cache.
inline int64_t heads_in_cache(int64_t rows, int width) {
    constexpr int64_t CACHE = 24 << 20;
    return CACHE / (2 * 2 * rows * width) + 1;
}

// A section holds no more heads than there are: then products of these numbers fit an int.
inline core::Tiling tiling_of(const char* kernel, int64_t tiles, int64_t heads, int64_t section, bool last_first,
                              int64_t counter) {
    constexpr int64_t MOST = 1 << 30;
    if (heads >= MOST || tiles * heads >= MOST)
        throw std::invalid_argument(std::string(kernel) + ": 2**30 tiles or more");
    return {static_cast<int>(tiles), static_cast<int>(heads), static_cast<int>(std::min(section, heads)), last_first,
            reinterpret_cast<int*>(counter)};
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Over all batches.
inline int64_t heads_of(const Shape& shape) {
    const int64_t heads = static_cast<int64_t>(shape.batch) * shape.heads;
    if (heads >= 1 << 30) throw std::invalid_argument("2**30 heads or more, of all batches");
    return heads;
}

// The blocks of a grid.
inline int grid_of(const char* kernel, int64_t blocks) {
    if (blocks > 0x7fffffff) throw std::invalid_argument(std::string(kernel) + ": 2**31 blocks or more");
    return static_cast<int>(blocks);
}

// What every kernel that holds queries is told; `rounds` over all heads.
template <class Kernel, class T>
void fill_forward(ForwardParams& params, const Tensor& query, const Tensor& key, const Tensor& value,
                  const ScoreOptions& scores, int64_t rounds, int64_t counter) {
    params.query = map_of<T>(query, Kernel::Query::ROWS);
    params.key = map_of<T>(key, Kernel::Key::ROWS);
    params.value = map_of<T>(value, Kernel::Key::ROWS);
    params.shape = shape_of(query, key);
    params.scores = scores_of(scores);
    const Shape& shape = params.shape;
    params.tiling =
        tiling_of(Kernel::name, ceil_div(shape.len_q, Kernel::Query::ROWS), rounds * heads_of(shape),
                  shape.group * heads_in_cache(shape.len_k, Kernel::Key::WIDTH), scores.right >= 0, counter);
}

// One block per multiprocessor, or per tile if there are fewer.
template <class Kernel>
void launch_persistent(const typename Kernel::Params& params, int64_t stream) {
    static_assert(Kernel::shared_bytes <= ptx::SHARED_MEMORY);
    const auto on = reinterpret_cast<ptx::Stream>(stream);
    const int total = params.tiling.tiles * params.tiling.heads, most = ptx::multiprocessors();
    if (total > most) ptx::set_zero(params.tiling.counter, sizeof(int), on);
    ptx::launch<Kernel>(params, total < most ? total : most, on);
}

}  // namespace instances
