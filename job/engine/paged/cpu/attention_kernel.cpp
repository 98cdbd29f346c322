// Attention over the paged cache on a CPU. Compiled for a layer's sizes by cpu/attention.py:
// GROUP queries per key-value head, KEY_SIZE, VALUE_SIZE, PAGE_TOKENS, NUMBER_BITS (16: bfloat16, 32: float).
//
// One pass over a row's pages with a running maximum (online softmax, Milakov and Gimelshein 2018). While a page is
// computed, the next one is prefetched: without that, half of the time is spent waiting for memory.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int G = GROUP, D = KEY_SIZE, V = VALUE_SIZE, P = PAGE_TOKENS;
constexpr float LOG2_E = 1.44269504f;

#if NUMBER_BITS == 16
using Number = uint16_t;

inline float widen(Number number) {
    uint32_t bits = uint32_t(number) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline Number narrow(float wide) {  // to nearest, ties to even, as torch does
    if (wide != wide) return 0x7fc0;
    uint32_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    return Number((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
using Number = float;
inline float widen(Number number) { return number; }
inline Number narrow(float wide) { return wide; }
#endif

// 2^x with a relative error of 2e-7 (a polynomial, so that loops over it are vectorized); NaN stays NaN.
inline float exp2_of(float x) {
    x = x < -126.0f ? -126.0f : x > 126.0f ? 126.0f : x;
    float whole = std::nearbyintf(x), part = x - whole;
    float y = 1.5403530e-4f;
    y = y * part + 1.3333558e-3f;
    y = y * part + 9.6181291e-3f;
    y = y * part + 5.5504109e-2f;
    y = y * part + 2.4022651e-1f;
    y = y * part + 6.9314718e-1f;
    y = y * part + 1.0f;
    int32_t bits = (int32_t(whole) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

inline float softcapped(float score, float cap) {  // cap tanh(score / cap)
    return cap * (1.0f - 2.0f / (exp2_of(score * (2.0f * LOG2_E / cap)) + 1.0f));
}

// The queries of one key-value head of one row, and their weighted sums so far. Scores are exponents of two.
struct Queries {
    float query[G][D], gathered[G][V], top[G], sum[G];
    float weights[G][P];

    void begin(const Number *queries, const float *sinks, float scale) {
        for (int g = 0; g < G; g++) {
            for (int d = 0; d < D; d++) query[g][d] = widen(queries[g * D + d]) * scale;
            for (int d = 0; d < V; d++) gathered[g][d] = 0.0f;
            top[g] = sinks ? sinks[g] * LOG2_E : -INFINITY;
            sum[g] = sinks ? 1.0f : 0.0f;
        }
    }

    // Multiply with the keys [P, D] of a page, for tokens first to end - 1, and prefetch the next page meanwhile.
    void score(const Number *keys, int first, int end, const Number *next_keys, const Number *next_values) {
        for (int t = first; t < end; t++) {
            for (int d = 0; d < D; d += 64 / sizeof(Number)) __builtin_prefetch(next_keys + t * D + d, 0, 2);
            for (int d = 0; d < V; d += 64 / sizeof(Number)) __builtin_prefetch(next_values + t * V + d, 0, 2);
            float key[D];
            for (int d = 0; d < D; d++) key[d] = widen(keys[t * D + d]);
            for (int g = 0; g < G; g++) {
                float score = 0.0f;
                for (int d = 0; d < D; d++) score += query[g][d] * key[d];
                weights[g][t] = score;
            }
        }
    }

    void weigh(int first, int end, float softcap) {
        for (int g = 0; g < G; g++) {
            float *weight = weights[g], most = top[g], added = 0.0f;
            if (softcap > 0)
                for (int t = first; t < end; t++) weight[t] = softcapped(weight[t], softcap) * LOG2_E;
            for (int t = first; t < end; t++) most = weight[t] > most ? weight[t] : most;
            for (int t = first; t < end; t++) {
                weight[t] = exp2_of(weight[t] - most);
                added += weight[t];
            }
            float kept = exp2_of(top[g] - most);
            for (int d = 0; d < V; d++) gathered[g][d] *= kept;
            sum[g] = sum[g] * kept + added;
            top[g] = most;
        }
    }

    void gather(const Number *values, int first, int end) {
        for (int t = first; t < end; t++)
            for (int g = 0; g < G; g++)
                for (int d = 0; d < V; d++) gathered[g][d] += weights[g][t] * widen(values[t * V + d]);
    }

    void end(Number *output) const {
        for (int g = 0; g < G; g++)
            for (int d = 0; d < V; d++) output[g * V + d] = narrow(gathered[g][d] / sum[g]);
    }
};

}  // namespace

// output [T, heads * G, V], queries [T, heads * G, D], keys [pages, heads, P, D], values [pages, heads, P, V].
// Token i belongs to sequence sequences[i], whose k-th page is tables[sequences[i] * width + k], and sees the last
// `window` (0: all) of its first ends[i] tokens. sinks [heads * G] or null; softcap 0: none.
extern "C" void paged_attention(
    Number *output, const Number *queries, const Number *keys, const Number *values, const int64_t *tables,
    const int64_t *sequences, const int64_t *ends, const float *sinks, float scale, float softcap, int64_t window,
    int64_t tokens, int64_t heads, int64_t width, int64_t threads) {
    float query_scale = softcap > 0 ? scale : scale * LOG2_E;
    auto start_of = [&](int64_t token) { return window && ends[token] > window ? ends[token] - window : 0; };
    auto page_of = [&](int64_t token, int64_t page, int64_t head) {
        return tables[sequences[token] * width + page] * heads + head;
    };
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
    for (int64_t task = 0; task < tokens * heads; task++) {
        int64_t token = task / heads, head = task % heads, start = start_of(token), end = ends[token];
        int64_t next_token = std::min(task + 1, tokens * heads - 1) / heads, next_head = (task + 1) % heads;
        Queries group;
        group.begin(queries + task * G * D, sinks ? sinks + head * G : nullptr, query_scale);
        for (int64_t page = start / P; page * P < end; page++) {
            int64_t here = page_of(token, page, head) * P;
            int64_t next = (page + 1) * P < end ? page_of(token, page + 1, head)
                                                : page_of(next_token, start_of(next_token) / P, next_head);
            int first = int(std::max(start - page * P, int64_t(0))), last = int(std::min(end - page * P, int64_t(P)));
            group.score(keys + here * D, first, last, keys + next * P * D, values + next * P * V);
            group.weigh(first, last, softcap);
            group.gather(values + here * V, first, last);
        }
        group.end(output + task * G * V);
    }
}
