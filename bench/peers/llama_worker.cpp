// llama.cpp's side of compare_llama_cpp_speed.py and of the example activation_error.
//
// llama_worker MODEL.gguf THREADS PROMPT TEXT answers each line of input with a line of JSON: the seconds of a prompt of
// PROMPT tokens, and those of a token when TEXT tokens follow a prompt of 8.
// llama_worker MODEL.gguf THREADS IDS LOGITS writes the logits of the ids in a file, f32 row by row.
// llama_worker FROM.gguf quantize TO.gguf q4_0|q8_0 quantizes every matrix to the same type.
#include "llama.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

using Clock = std::chrono::steady_clock;

static llama_context *context(llama_model *model, int threads) {
    auto params = llama_context_default_params();
    params.n_ctx = 1024;
    params.n_batch = 2048;
    params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = threads;
    return llama_init_from_model(model, params);
}

static llama_token likeliest(llama_context *ctx, int vocab) {
    const float *logits = llama_get_logits_ith(ctx, -1);
    int best = 0;
    for (int i = 1; i < vocab; i++) best = logits[i] > logits[best] ? i : best;
    return best;
}

static double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

static int write_logits(llama_context *ctx, int vocab, const char *ids, const char *to) {
    std::ifstream in(ids);
    std::ofstream out(to, std::ios::binary);
    std::vector<llama_token> tokens;
    for (llama_token id; in >> id;) tokens.push_back(id);
    for (auto &token : tokens) {
        if (llama_decode(ctx, llama_batch_get_one(&token, 1))) return 4;
        out.write(reinterpret_cast<const char *>(llama_get_logits_ith(ctx, -1)), sizeof(float) * vocab);
    }
    return out ? 0 : 5;
}

int main(int argc, char **argv) {
    if (argc < 5) return 1;
    llama_log_set([](ggml_log_level level, const char *text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    if (std::string(argv[2]) == "quantize") {
        auto params = llama_model_quantize_default_params();
        params.ftype = std::string(argv[4]) == "q8_0" ? LLAMA_FTYPE_MOSTLY_Q8_0 : LLAMA_FTYPE_MOSTLY_Q4_0;
        params.nthread = 1;
        params.pure = true;
        return llama_model_quantize(argv[1], argv[3], &params);
    }
    auto *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    auto *ctx = model ? context(model, atoi(argv[2])) : nullptr;
    if (!ctx) return 2;
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model)), prompt = atoi(argv[3]), text = atoi(argv[4]);
    if (prompt == 0) return write_logits(ctx, vocab, argv[3], argv[4]);
    std::vector<llama_token> ids(prompt > 8 ? prompt : 8);
    for (size_t i = 0; i < ids.size(); i++) ids[i] = (i * 7919 + 11) % 350;
    for (std::string line; std::getline(std::cin, line);) {
        llama_memory_clear(llama_get_memory(ctx), true);
        auto start = Clock::now();
        if (llama_decode(ctx, llama_batch_get_one(ids.data(), prompt))) return 4;
        likeliest(ctx, vocab);
        const double seconds = since(start);
        llama_memory_clear(llama_get_memory(ctx), true);
        if (llama_decode(ctx, llama_batch_get_one(ids.data(), 8))) return 4;
        llama_token token = likeliest(ctx, vocab);
        start = Clock::now();
        for (int i = 1; i < text; i++) {
            if (llama_decode(ctx, llama_batch_get_one(&token, 1))) return 5;
            token = likeliest(ctx, vocab);
        }
        printf("{\"prompt\": %.6f, \"token\": %.8f}\n", seconds, since(start) / (text - 1));
        fflush(stdout);
    }
}
