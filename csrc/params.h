// What the kernels are told, filled on the host.
#pragma once
#include <cstdint>

#include "core/centers.h"
#include "core/prior.h"
#include "core/schedule.h"
#include <ptx/tensor_map.h>

struct Shape {
    int batch, heads, group, len_q, len_k;  // `group` query heads share a key head
};

// A tensor (batch, heads, rows, columns) of 16-bit numbers, columns side by side; strides in numbers.
struct Rows {
    void* data;
    int64_t batch_stride, head_stride, row_stride;

    template <class T>
    DEVICE T* row(int batch, int head, int row) const {
        return static_cast<T*>(data) + batch * batch_stride + head * head_stride + row * row_stride;
    }
};

// Scores and where they may be.
struct Scores {
    float scale;  // natural units
    core::Window window;
    core::Centers centers;  // instead of the window, if they are learned
};

// What else may shape scores and weights.
struct ScoreExtras {
    enum MaskKind { NONE, BOOL, FLOAT, SIXTEEN_BIT };
    float softcap;  // 0: none
    MaskKind mask_kind;
    const void* mask;
    float* mask_gradient;                          // float32, or null
    int64_t mask_strides[4], gradient_strides[4];  // in elements, 0 where broadcast
    const int64_t* seed;
    uint32_t dropout_threshold;  // of the top 24 bits; 0: none
    float dropout_scale;
    int first_key;  // number of the first key, for the random numbers: a multiple of 4
};

// What every kernel that holds queries is told.
struct ForwardParams {
    ptx::TensorMap query, key, value;
    Shape shape;
    Scores scores;
    core::Tiling tiling;
};

struct SoftmaxForwardParams : ForwardParams {
    ptx::TensorMap output;
    float* lse;  // (batch, heads, len_q)
    ScoreExtras extras;
};

// The heads of the tiling are those of all batches, once for every four samples.
struct SampleForwardParams : ForwardParams {
    const int64_t* seed;
    int64_t* index;        // (samples, batch, heads, len_q), -1 in rows with nothing to see
    float* score;          // likewise
    float *lse, *entropy;  // (batch, heads, len_q)
    int samples;
};

// Without an output there is no base, and with one no entropy's gradient.
struct BackwardRowsParams {
    Rows query, key;
    Rows output, grad_output;          // null where only lse and entropy have gradients
    const float *lse, *row, *entropy;  // (batch, heads, len_q): row, what else is subtracted, and entropy's gradient;
                                       // both may be null
    // (batch, heads, padded_rows): lse in units of log2, +inf where a row has nothing to see or does not exist; what is
    // subtracted from every gradient of a row; the entropy's gradient; a base that scores are relative to, and lse_out
    // then too, 0 but where lse has lost the logarithm of its sum. The last two may be null.
    float *lse_out, *row_out, *entropy_out, *base_out;
    int padded_rows, width, head_width;
    Shape shape;
    Scores scores;
    ScoreExtras extras;
};

struct SoftmaxBackwardParams {
    ptx::TensorMap query, key, value, grad_output, grad_key, grad_value;
    const float *lse, *row, *entropy, *base;  // of backward_rows
    float* grad_query;  // sums over the blocks of keys, in the matrix unit's own order; zero at the start
    int padded_rows;
    Shape shape;
    Scores scores;
    ScoreExtras extras;
    core::Tiling tiling;
};

struct BackwardQueryParams {
    const float* sums;  // of softmax_backward
    Rows grad_query;
    int padded_rows, squares_beside, width;
    float scale;
    Shape shape;
};
