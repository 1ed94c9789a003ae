// Runs settle_heads.cu on the CPU for recall heads: the threshold that it finds is the largest whose blocks hold the floor.
#include <algorithm>
int main() {
    std::mt19937 dice(17);
    std::normal_distribution<double> normal;
    int bad = 0;
    for (int round = 0; round < 12; round++) {
        SettleHeadsParams p{3, (u32)(400 + dice() % 9000), 0, 0.125f, 1.f / 64};
        p.key_blocks = (p.kv_len + 63) / 64;
        std::vector<float> columns(p.n_heads * p.kv_len), scores(p.n_heads * p.key_blocks), real(scores.size());
        std::vector<u32> column_count(p.n_heads, 7), offset_count(p.n_heads, 8);
        std::vector<uint4> plan, budget;
        for (u32 h = 0; h < p.n_heads; h++) {
            double total = 0;
            std::vector<double> raw(p.kv_len);
            for (auto& x : raw) total += x = std::exp(1.5 * normal(dice));
            for (u32 i = 0; i < p.kv_len; i++) columns[h * p.kv_len + i] = 64 * raw[i] / total;
            for (u32 c = 0; c < p.key_blocks; c++) {
                double sum = 0;
                for (u32 i = 64 * c; i < min(64 * c + 64, p.kv_len); i++) sum += raw[i] / total;
                scores[h * p.key_blocks + c] = std::log(sum) / p.scale + (round % 4) * 5 * normal(dice);
            }
            const float floor = 0.5f + 0.049f * (dice() % 10), most = dice() % 2 ? 1.f : 0.3f;
            plan.push_back(make_uint4(h == 1 ? VERTICAL_SLASH : FIT, __float_as_uint(most), 3, 3));
            budget.push_back(make_uint4(__float_as_uint(floor), 0, 0, 0));
        }
        const auto before = plan;
        emu::launch((p.key_blocks + 7) / 8, p.n_heads, 256, [&] { block_mass(p, plan.data(), columns.data(), real.data()); });
        emu::launch(p.n_heads, 1, 256, [&] { settle_heads(p, budget.data(), real.data(), scores.data(), plan.data(), column_count.data(), offset_count.data()); });
        bool ok = plan[1].x == VERTICAL_SLASH && column_count[1] == 7 && offset_count[1] == 8;
        for (u32 h = 0; h < p.n_heads; h += 2) {
            const float* s = &scores[h * p.key_blocks];
            const float top = *std::max_element(s, s + p.key_blocks);
            auto held = [&](double alpha) {
                double sum = 0;
                for (u32 c = 0; c < p.key_blocks; c++)
                    if (c == 0 || c + 3 >= p.key_blocks || std::exp((s[c] - top) * (double)p.scale) >= alpha)
                        for (u32 i = 64 * c; i < min(64 * c + 64, p.kv_len); i++) sum += columns[h * p.kv_len + i] / 64;
                return sum;
            };
            const double floor = __uint_as_float(budget[h].x), most = __uint_as_float(before[h].y);
            ok &= column_count[h] == 0 && offset_count[h] == 0;
            if (plan[h].x == DENSE) { ok &= held(1.02 / 1024) < floor + 2e-4; continue; }
            const double alpha = __uint_as_float(plan[h].y);
            ok &= plan[h].x == BLOCK_SPARSE && plan[h].z == 3 && plan[h].w == 3 && alpha <= most;
            ok &= held(alpha * 0.999) > floor - 2e-4 && (alpha > 0.999 * most || held(alpha * 1.02) < floor + 2e-4);
        }
        bad += !ok;
        printf("%u keys: %s\n", p.kv_len, ok ? "ok" : "BAD");
    }
    return bad != 0;
}
