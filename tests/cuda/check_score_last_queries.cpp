// Runs score_last_queries.cu on the CPU against the golden column and offset scores; splits of 64 to 256 keys.
#include "check.h"
int main(int argc, char** argv) {
    int bad = 0;
    for (int f = 1; f < argc; f++) {
        Safetensors st(argv[f]);
        auto q = st.get<act>("q"), k = st.get<act>("k");
        auto columns = st.f32("est/column_score"), offsets = st.f32("est/offset_score");
        const u32 heads = st.shape("q")[0], n = st.shape("q")[1], d = st.shape("q")[2], kv = st.shape("k")[0];
        if (d != HEAD_DIM) continue;
        for (u32 split : {64, 256}) {
            ScoreLastQueriesParams p{heads, kv, d, n, n, 0, std::min(64u, n), 1 / sqrtf(d), d, n * d, d, n * d};
            const u32 splits = (n + split - 1) / split;
            std::vector<uint4> plan(heads, {2, 0, 0, 0});
            std::vector<float2> partial(heads * splits * 64), stats(heads * 64);
            std::vector<float> c(heads * n, NAN), o(heads * n, NAN);
            emu::launch(splits, heads, 128, [&] { last_query_stats(p, split, plan.data(), q.data(), k.data(), partial.data(), o.data()); });
            emu::launch(heads, 1, 512, [&] { last_query_merge(plan.data(), splits, partial.data(), stats.data()); });
            emu::launch(splits, heads, 128, [&] { last_query_scores(p, split, plan.data(), q.data(), k.data(), stats.data(), c.data(), o.data()); });
            double worst = 0;
            for (size_t i = 0; i < c.size(); i++)
                for (double e : {(double)c[i] - columns[i], (double)o[i] - offsets[i]}) { e = std::fabs(e); worst = e == e ? std::fmax(worst, e) : 1e9; }
            const bool ok = worst < 1e-4;
            bad += !ok;
            printf("%-40s split %u worst %.1e %s\n", strrchr(argv[f], '/') + 1, split, worst, ok ? "ok" : "BAD");
            fflush(stdout);
        }
    }
    return bad != 0;
}
