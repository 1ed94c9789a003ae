// Runs build_index.cu on the CPU: vertical-slash, A-shape, block-sparse and dense heads of random plans against the rules
// written out element by element, and the golden conversions of ../shared/golden/convert.safetensors where it is given.
#include "check.h"
#include <set>

typedef std::vector<u32> Ints;
static int bad = 0;
static void verdict(const std::string& what, bool ok) { if (!ok) bad++; printf("%-60s %s\n", what.c_str(), ok ? "ok" : "BAD"); fflush(stdout); }

struct Head { u32 kind, a, b; u32 c = 0; Ints columns, offsets; std::vector<Ints> blocks; };
struct Row { std::vector<uint2> ranges; Ints columns; u32 pairs; };

// One row block by the rule, key by key.
static Row plain(const Head& h, const BuildIndexParams& p, int r) {
    const int begin = p.q_start + 64 * r, end = begin + 64, last = std::min(end, (int)(p.q_start + p.q_len));
    std::vector<int2> runs;
    Row out;
    if (h.kind == VERTICAL_SLASH) {
        for (int i = h.offsets.size(); i--;) {
            const int s = h.offsets[i];
            if (s >= end) continue;
            const int e = std::max(end - s, 64);
            if (runs.empty() || e > runs.back().y + 64) runs.push_back({e - 64, e});
            else if (e > runs.back().y) runs.back().y += 64;
        }
        if (runs.empty()) runs.push_back({begin, end});
        for (u32 c : h.columns) {
            bool in = (int)c >= std::min(runs.back().x, begin);
            for (auto x : runs) in |= (int)c >= x.x && (int)c < x.y;
            if (!in) out.columns.push_back(c);
        }
        while (runs.back().y - 64 >= (int)p.kv_len) runs.back().y -= 64;
    } else if (h.kind == BLOCK_SPARSE) {
        for (u32 b : h.blocks[r]) if (!runs.empty() && runs.back().y == (int)b * 64) runs.back().y += 64; else runs.push_back({(int)b * 64, (int)b * 64 + 64});
    } else if (h.kind == A_SHAPE || (h.kind == TRI_SHAPE && last - 1 + (int)h.c < (int)(p.q_start + p.q_len))) {
        const int lo = std::max(0, begin - (int)h.b + 1);
        if ((int)h.a >= lo) runs = {{0, end}};
        else if (h.a) runs = {{0, (int)h.a}, {lo, end}};
        else runs = {{lo, end}};
    } else runs = {{0, end}};
    out.pairs = 0;
    for (int i = begin; i < last; i++) {
        for (auto x : runs) for (int j = x.x; j < std::min(x.y, i + 1); j++) out.pairs += h.kind != A_SHAPE || j < (int)h.a || i - j < (int)h.b;
        out.pairs += out.columns.size();
    }
    for (auto x : runs) out.ranges.push_back({(u32)x.x, (u32)x.y});
    return out;
}

static bool run(const std::vector<Head>& heads, BuildIndexParams p) {
    size_t tiles = 0, offsets = 1;
    for (auto& h : heads) { tiles = std::max(tiles, (h.columns.size() + 63) / 64); offsets = std::max(offsets, h.offsets.size()); }
    p.n_heads = heads.size();
    p.row_blocks = (p.q_len + 63) / 64;
    p.column_tiles = tiles;
    p.offset_capacity = offsets;
    p.block_words = (p.kv_len + 2047) / 2048;
    const u32 rows = p.n_heads * p.row_blocks, parts = (p.row_blocks + 31) / 32;
    std::vector<uint4> plan;
    Ints columns(heads.size() * tiles * 64 + 1, NONE), list(heads.size() * offsets, NONE), counts, mask((size_t)rows * p.block_words), totals(parts * p.n_heads), pairs(rows);
    std::vector<uint2> row_ranges(rows), ranges(p.range_budget + rows), window(p.n_heads);
    std::vector<u64> keep(rows * tiles + 1);
    for (size_t h = 0; h < heads.size(); h++) {
        plan.push_back({heads[h].kind, heads[h].a, heads[h].b, heads[h].c});
        std::copy(heads[h].columns.begin(), heads[h].columns.end(), columns.begin() + h * tiles * 64);
        std::copy(heads[h].offsets.begin(), heads[h].offsets.end(), list.begin() + h * offsets);
        counts.push_back(heads[h].offsets.size());
        for (size_t r = 0; r < heads[h].blocks.size(); r++) for (u32 b : heads[h].blocks[r]) mask[(h * p.row_blocks + r) * p.block_words + b / 32] |= 1u << b % 32;
    }
    const size_t slots = heads.size() * offsets;
    std::vector<uint2> runs(slots, {77, 77}), links(2 * slots, {77, 77}), chain(slots, {77, 77});
    const u32 cover_words = (p.kv_len + 64) / 32 + 1;
    Ints depth(slots, 77), gaps(slots, 77), cover((size_t)p.n_heads * cover_words, 77);
    const Slashes slashes{runs.data(), links.data(), depth.data(), chain.data(), cover.data(), gaps.data(), cover_words};
    emu::launch(p.n_heads, 1, 1024, [&] { slash_gaps(p, plan.data(), list.data(), counts.data(), slashes); });
    emu::launch((offsets + 255) / 256, p.n_heads, 256, [&] { slash_runs(p, plan.data(), list.data(), counts.data(), slashes); });
    emu::launch(p.n_heads, 1, 1024, [&] { link_runs(p, plan.data(), list.data(), counts.data(), slashes); });
    emu::launch(parts, p.n_heads, 1024, [&] { count_ranges(p, plan.data(), list.data(), counts.data(), mask.data(), slashes, row_ranges.data(), totals.data()); });
    emu::launch((rows + 1023) / 1024, 1, 1024, [&] { place_rows(p, totals.data(), row_ranges.data()); });
    emu::launch((p.row_blocks + 7) / 8, p.n_heads, 256, [&] { fill_rows(p, plan.data(), columns.data(), list.data(), counts.data(), mask.data(), slashes, row_ranges.data(), ranges.data(), keep.data(), window.data(), pairs.data()); });
    bool ok = true;
    std::set<u32> used;
    for (u32 h = 0; h < p.n_heads; h++)
        for (u32 r = 0; r < p.row_blocks; r++) {
            const u32 row = h * p.row_blocks + r;
            Row want = plain(heads[h], p, r);
            const uint2 own = row_ranges[row];
            const Row all = plain(Head{DENSE}, p, r);
            const bool sparse = heads[h].kind == VERTICAL_SLASH || heads[h].kind == BLOCK_SPARSE;
            const bool full = p.dense_above < 256 && sparse && want.pairs > all.pairs / 256 * p.dense_above;
            if (full) ok &= own.x == p.range_budget + row;
            if (own.x >= p.range_budget) {               // over the budget, or denser than pays: dense
                ok &= full || p.range_budget < 4000;
                const u32 windowed = want.pairs;
                want = all;
                if (heads[h].kind == A_SHAPE) want.pairs = windowed;
            } else {
                for (u32 i = 0; i < own.y; i++) ok &= used.insert(own.x + i).second && own.x + i < p.range_budget;
            }
            ok &= own.y == want.ranges.size();
            for (u32 i = 0; i < own.y && ok; i++) ok &= ranges[own.x + i].x == want.ranges[i].x && ranges[own.x + i].y == want.ranges[i].y;
            Ints kept;
            for (size_t c = 0; c < tiles * 64; c++) if (keep[row * tiles + c / 64] >> c % 64 & 1) kept.push_back(columns[h * tiles * 64 + c]);
            ok &= kept == want.columns && pairs[row] == want.pairs;
            ok &= window[h].x == (heads[h].kind == A_SHAPE ? heads[h].a : NONE);
            if (!ok) { printf("head %u (kind %u) row %u: %u ranges of %zu, %zu columns of %zu, pairs %u of %u\n", h, heads[h].kind, r, own.y, want.ranges.size(), kept.size(), want.columns.size(), pairs[row], want.pairs); return false; }
        }
    return true;
}

int main(int argc, char** argv) {
    std::mt19937 dice(3);
    auto some = [&](int n, int count) { std::set<u32> s; while ((int)s.size() < std::min(n, count)) s.insert(dice() % n); return Ints(s.begin(), s.end()); };
    for (int round = 0; round < 60; round++) {
        BuildIndexParams p{};
        p.q_len = 1 + dice() % 700;
        p.q_start = dice() % 3 ? 0 : dice() % 500;
        p.kv_len = p.q_start + p.q_len + (dice() % 2 ? 0 : dice() % 100);
        std::vector<Head> heads;
        for (int i = 0; i < 6; i++) {
            Head h{};
            h.kind = dice() % 5;
            const int rows = (p.q_len + 63) / 64;
            if (h.kind == VERTICAL_SLASH) {
                h.columns = some(p.kv_len, dice() % 200);
                h.offsets = some(p.kv_len, 1 + dice() % (dice() % 2 ? 10 : 200));
                if (dice() % 2) h.offsets[0] = 0;
            } else if (h.kind == BLOCK_SPARSE) {
                for (int r = 0; r < rows; r++) {
                    const u32 begin = p.q_start + 64 * r;
                    h.blocks.push_back(some(begin / 64 + 1, 1 + dice() % 5));
                }
            } else if (h.kind == A_SHAPE || h.kind == TRI_SHAPE) { h.a = dice() % 3 ? dice() % 200 : 0; h.b = 1 + dice() % 300; h.c = h.kind == TRI_SHAPE ? dice() % 200 : 0; }
            heads.push_back(h);
        }
        p.dense_above = round % 4 == 3 ? dice() % 256 : 256;
        p.range_budget = round % 5 == 4 ? dice() % 40 : 4000;
        if (!run(heads, p)) verdict("random plan " + std::to_string(round), false);
    }
    verdict("60 random plans", bad == 0);
    if (argc > 1) {
        Safetensors st(argv[1]);
        int cases = 0;
        for (; st.has("conv" + std::to_string(cases) + "/v_idx"); cases++) {
            const std::string name = "conv" + std::to_string(cases);
            auto v = st.i32(name + "/v_idx"), s = st.i32(name + "/s_idx"), bp = st.i32(name + "/block_ptr"), bv = st.i32(name + "/block_val"), cp = st.i32(name + "/column_ptr"), cv = st.i32(name + "/column_val");
            BuildIndexParams p{};
            p.q_len = p.kv_len = st.parameter(name, "n");
            p.range_budget = 100000;
            p.dense_above = 256;
            Head h{VERTICAL_SLASH};
            h.columns.assign(v.begin(), v.end());
            h.offsets.assign(s.rbegin(), s.rend());
            bool ok = run({h}, p);
            for (size_t r = 0; r + 1 < bp.size(); r++) {  // the plain rule is the official one
                Row row = plain(h, p, r);
                std::vector<int> blocks;
                for (auto x : row.ranges) for (u32 k = x.x; k < x.y; k += 64) blocks.push_back(k);
                std::vector<int> want(bv.begin() + bp[r], bv.begin() + bp[r + 1]);
                while (!want.empty() && want.back() >= (int)p.kv_len) want.pop_back();
                ok &= blocks == want;
                std::vector<int> kept(row.columns.begin(), row.columns.end()), wanted(cv.begin() + cp[r], cv.begin() + cp[r + 1]);
                while (!wanted.empty() && wanted.back() >= (int)(64 * r)) wanted.pop_back();
                ok &= kept == wanted;
            }
            verdict("golden conversion " + name, ok);
        }
        verdict("golden conversions found", cases > 0);
    }
    return bad != 0;
}
