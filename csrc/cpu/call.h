// What the kernels are told: one call in plain numbers and addresses, filled by the binding.
#pragma once
#include <cstdint>

enum class Number : int { float32, bfloat16, float16 };
inline int64_t bytes(Number number) { return number == Number::float32 ? 4 : 2; }

// A tensor (batch, heads, rows, columns); strides in numbers. No data: there is none.
struct Tensor {
    char* data = nullptr;
    int64_t strides[4] = {};
    Number number = Number::float32;

    explicit operator bool() const { return data != nullptr; }
    char* at(int64_t b, int64_t h, int64_t row) const {
        return data + (b * strides[0] + h * strides[1] + row * strides[2]) * bytes(number);
    }
};

// attn_mask, or what has its shape: where it is broadcast, sizes are 1 and strides 0.
struct Mask {
    enum Kind : int { NONE, BOOL, FLOAT } kind = NONE;
    Tensor entries;  // of bool: one byte each
    int64_t sizes[4] = {};
};

struct Dropout {
    uint32_t threshold = 0;  // of the top 24 bits; 0: none
    float scale = 1;
};

// Learned centres: rows of (batch, heads, len_q).
struct Centers {
    const float* center = nullptr;  // null: there are none
    const float* sigma = nullptr;   // null: no Gaussian
    bool inside = false;            // of the softmax, or multiplied after it
};

enum class Selector : int { softmax, sample, argmax, linear, relu, exp };

struct Call {
    int64_t batch, heads, kv_heads, len_q, len_k, head_dim, value_dim;  // packed: of the longest sequence
    int64_t total_rows;                                                 // of a head: len_q, or all sequences' rows
    Tensor query, key, value;
    float scale, softcap;  // 0: none
    Mask mask;
    bool causal;
    int64_t left, right;         // of the window, -1: unlimited
    int64_t offset;              // key position of query 0
    const int64_t* offsets;      // instead of it, one for each batch element; or null
    const int64_t *cu_q, *cu_k;  // where packed sequences begin; or null
    Centers centers;
    Selector selector;
    Dropout dropout;
    int64_t seed;
    int tile_rows;  // of a tile, at most TILE_ROWS
    int threads;

    bool softmax() const { return selector < Selector::linear; }  // or draws from it
    int64_t group() const { return kv_heads ? heads / kv_heads : 1; }
};

struct ForwardResults {
    Tensor output;
    float* lse;  // (batch, heads, len_q); null for weights without a softmax
};

struct Samples {
    int64_t count;
    Tensor output;          // (batch, heads, len_q, value_dim) of the first one
    int64_t output_stride;  // numbers from one to the next
    int64_t* index;         // (count, batch, heads, len_q), -1 in rows with nothing to see
    float* score;           // likewise
    float *lse, *entropy;   // (batch, heads, len_q)
};

// Weights (batch, heads, len_q, len_k), or their mean over the heads: float32, 0 before, its heads' stride 0.
struct Weights {
    const float* lse;  // (batch, heads, len_q)
    Tensor weights;
    bool mean;
};

// dS = p (factor (grad_output . value + grad_weights) - sum - row - entropy log p); what is absent is null.
struct Backward {
    const float* lse;
    Tensor output, grad_output;
    Mask grad_weights;
    const float *row, *entropy;               // (batch, heads, len_q)
    Tensor grad_query, grad_key, grad_value;  // results
    Mask grad_mask;                           // likewise, float32, 0 before
    float *grad_center, *grad_sigma;          // results, or null
};

// Of samples: what reaches the scores at the draws, or the values gathered there; what is absent is null.
struct SparseGiven {
    int64_t count;                            // of draws
    const int64_t* index;                     // (count, batch, heads, len_q), -1: none
    const float *score, *grad_score;          // likewise
    Tensor grad_output;                       // (batch, heads, len_q, value_dim) of the first one
    int64_t grad_output_stride;               // numbers from one to the next
    Tensor grad_query, grad_key, grad_value;  // results: with grad_score the first two, with grad_output the last
};

// Attention-over-Attention of documents (batch, len_d, features) and questions (batch, len_q, features), as tensors of one
// head. Masks are true where there is a word, or null.
struct AoaCall {
    int64_t batch, len_d, len_q, features;
    Tensor document, question;
    const bool *document_mask, *question_mask;
    float* kept;  // scores (batch, len_d, len_q), from forward to backward; or null
    int threads;
};

struct AoaForward {
    Tensor attention;                    // (batch, len_d), as the columns of one row
    float *row_lse, *column_lse, *beta;  // (batch, len_d), (batch, len_q) twice; 0 where there is no word
};

struct AoaBackward {
    Tensor grad;  // like attention
    const float *column_lse, *beta;
    Tensor grad_document, grad_question;  // results
};

// What a machine's best rate is measured of: multiply-accumulates of a dtype, or exponentials of float32.
enum class Unit : int { float32, bfloat16, float16, float64, exp };

// One instruction set's kernels.
struct Kernels {
    const char* name;
    int lanes;
    void (*forward)(const Call&, const ForwardResults&);
    void (*sample)(const Call&, const Samples&);
    void (*weights)(const Call&, const Weights&);
    void (*backward)(const Call&, const Backward&);
    void (*mask_gradient)(const Call&, const Backward&);
    void (*sparse_backward)(const Call&, const SparseGiven&);
    void (*aoa_forward)(const AoaCall&, const AoaForward&);
    void (*aoa_backward)(const AoaCall&, const AoaBackward&);
    int64_t (*spin)(Unit, int64_t rounds, int threads);
};
