// Runs select_top_k.cu on the CPU against a stable sort: ties, forced indices, NaN, infinities, both zeros, several parts; short rows
// also in one block.
#include <algorithm>
int main() {
    std::mt19937 dice(11);
    int bad = 0;
    for (int round = 0; round < 14; round++) {
        SelectTopKParams p{3, (u32)(round < 10 ? 1 + dice() % 3000 : 8192 * (round - 8) + dice() % 100), 0, round % 3 ? 0u : dice() % 40};
        std::vector<float> scores(p.rows * p.len);
        for (auto& x : scores) {
            const int kind = dice() % 8;
            x = kind == 0 ? NAN : kind == 1 ? INFINITY : kind == 2 ? -0.f : kind == 3 ? 0.f : kind == 4 ? (float)(dice() % 5) : (float)((int)dice()) / 1e6f;
        }
        std::vector<u32> counts;
        for (u32 r = 0; r < p.rows; r++) { counts.push_back(1 + dice() % p.len); p.capacity = std::max(p.capacity, counts[r]); }
        p.capacity += 3;
        const u32 parts = (p.len + PART - 1) / PART;
        std::vector<u32> bins(p.rows * 3 * 2048), indices(p.rows * p.capacity, 12345);
        std::vector<uint2> taken(p.rows * parts);
        for (u32 pass = 0; pass < 3; pass++) emu::launch(parts, p.rows, 256, [&] { top_k_histogram(p, pass, scores.data(), counts.data(), bins.data()); });
        emu::launch(parts, p.rows, 256, [&] { top_k_count(p, scores.data(), counts.data(), bins.data(), taken.data()); });
        emu::launch(parts, p.rows, 256, [&] { top_k_write(p, scores.data(), counts.data(), bins.data(), taken.data(), indices.data()); });
        bool ok = true;
        if (p.len <= SHORT) {
            std::vector<u32> row(indices.size(), 12345);
            emu::launch(p.rows, 1, 1024, [&] { top_k_row(p, scores.data(), counts.data(), row.data()); });
            ok = row == indices;
        }
        for (u32 r = 0; r < p.rows; r++) {
            std::vector<u32> all(p.len);
            for (u32 i = 0; i < p.len; i++) all[i] = i;
            auto rank = [&](u32 i) { const float x = scores[r * p.len + i]; return i < p.forced ? std::make_pair(2, 0.f) : std::isnan(x) ? std::make_pair(0, 0.f) : std::make_pair(1, x + 0.f); };
            std::stable_sort(all.begin(), all.end(), [&](u32 a, u32 b) { return rank(a) > rank(b); });
            std::vector<u32> want(all.begin(), all.begin() + counts[r]);
            std::sort(want.begin(), want.end());
            want.resize(p.capacity, NONE);
            ok &= std::equal(want.begin(), want.end(), indices.begin() + r * p.capacity);
        }
        bad += !ok;
        printf("%u scores, forced %u: %s\n", p.len, p.forced, ok ? "ok" : "BAD");
        fflush(stdout);
    }
    return bad != 0;
}
