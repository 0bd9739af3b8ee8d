// What the binding asks for, in plain numbers, and the functions that answer: one instance per type and width.
#pragma once
#include <array>
#include <cstdint>

// Address and, in elements, sizes and strides of a 4-d tensor.
struct Tensor {
    int64_t address;
    std::array<int64_t, 4> sizes, strides;
};

struct ScoreOptions {
    float scale;
    int64_t left, right, offset;  // -1 is unlimited
    bool windowed() const { return left >= 0 || right >= 0; }
};

// Softcap, mask and dropout; `present` if any of them is there.
struct ExtraOptions {
    bool present = false;
    float softcap = 0;
    Tensor mask = {};           // address 0: none; strides 0 where broadcast
    Tensor mask_gradient = {};  // float32; address 0: not asked for
    int mask_bytes = 0;         // of an entry: 1 (bool), 2 or 4
    int64_t seed = 0;
    int64_t dropout_threshold = 0;
    float dropout_scale = 1;
    int first_key = 0;
};

// Learned centres; `present` if windows lie around those. The addresses of what core::Centers has.
struct CenterOptions {
    bool present = false;
    int gaussian = 0;
    int64_t rows = 0, blocks = 0, grad_center = 0, grad_sigma = 0;
};

struct SoftmaxForwardCall {
    Tensor query, key, value, output;
    int64_t lse;
    int64_t counter;  // an int to count tiles with
    ScoreOptions scores;
    ExtraOptions extras;
    CenterOptions centers;
    int64_t stream;
};

struct SampleForwardCall {
    Tensor query, key;
    int64_t seed;  // one int64
    int64_t index, score, lse, entropy;
    int64_t counter;  // an int to count tiles with
    int samples;
    ScoreOptions scores;
    int64_t stream;
};

// Without an output, that is with address 0 for it, only lse and entropy have gradients; value, grad_output and
// grad_value are not looked at.
struct SoftmaxBackwardCall {
    Tensor query, key, value, output, grad_output, grad_query, grad_key, grad_value;
    int64_t lse, row, entropy;       // row and entropy may be 0
    int64_t counter;                 // an int to count tiles with
    int64_t row_space, query_space;  // floats: 3 x and Width x batch x heads x padded rows, the latter zero
    ScoreOptions scores;
    ExtraOptions extras;
    CenterOptions centers;
    int64_t stream;
};

template <class T, int Width>
void softmax_forward(const SoftmaxForwardCall& call);
template <class T, int Width>
void sample_forward(const SampleForwardCall& call);
template <class T, int Width>
void softmax_backward(const SoftmaxBackwardCall& call);
