// Makes every flex head vertical-slash, block-sparse or dense, and every recall head block-sparse or dense. Flex (FlexPrefill,
// algorithm 2): block-sparse where the softmax of the block scores comes closer than tau to the real attention of the last
// queries, by the square root of the Jensen-Shannon divergence.
//
// One group a head: over key blocks the largest score, the sum under it, the divergence.
struct Params {
    n_heads: u32,
    kv_len: u32,
    key_blocks: u32,
    scale: f32,
    unit: f32,
    // where the slices begin in their bindings, in elements
    budget_at: u32,
    column_score_at: u32,
    block_score_at: u32,
    plan_at: u32,
    column_count_at: u32,
    offset_count_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> budget: array<u32>; // [n_heads, 4] mass, tau (f32 bits), least, most
@group(0) @binding(1) var<storage, read> column_score: array<f32>; // [n_heads, kv_len]
@group(0) @binding(2) var<storage, read> block_score: array<f32>; // [n_heads, key_blocks]
@group(0) @binding(3) var<storage, read_write> plan: array<u32>; // [n_heads, 4]
@group(0) @binding(4) var<storage, read_write> column_count: array<u32>; // [n_heads]
@group(0) @binding(5) var<storage, read_write> offset_count: array<u32>; // [n_heads]

const LOWEST: f32 = -3e38;

var<workgroup> s_kind: u32;

fn half_term(x: f32, middle: f32) -> f32 {
    if x <= 0.0 {
        return 0.0;
    }
    return 0.5 * x * log(x / middle);
}

// Attention that the last queries pay to a key block.
fn real_mass(head: u32, c: u32) -> f32 {
    var real = 0.0;
    for (var key = 64u * c; key < min(64u * c + 64u, p.kv_len); key++) {
        real += column_score[p.column_score_at + head * p.kv_len + key];
    }
    return real * p.unit;
}

// Bins beyond which a head is dense: blocks of 2^-10 of the heaviest would have to be taken.
const MOST_BINS: u32 = 640u;

// A recall head: a threshold head whose blocks hold the budget's part of the last queries' attention, or dense.
fn fit(at: Invocation, head: u32, largest: f32) {
    let nearest = plan[p.plan_at + 4u * head + 2u] & 0xffffu;
    clear_mass(at);
    var credit = 0.0;
    for (var c = at.lane; c < p.key_blocks; c += WORKGROUP) {
        let real = real_mass(head, c);
        if c == 0u || c + nearest >= p.key_blocks {
            credit += real;
        } else {
            let ratio = exp((block_score[p.block_score_at + head * p.key_blocks + c] - largest) * p.scale);
            atomicAdd(&s_mass[bin_of(ratio)], u32(real * ONE + 0.5));
        }
    }
    let credits = u32(group_sum(at, credit) * ONE + 0.5);
    let taken = bins_taken(at, bitcast<f32>(budget[p.budget_at + 4u * head]), credits);
    if at.lane != 0u {
        return;
    }
    let its = p.plan_at + 4u * head;
    if taken >= MOST_BINS {
        for (var i = 0u; i < 4u; i++) {
            plan[its + i] = select(0u, DENSE, i == 0u);
        }
    } else {
        // the least weight of the bins taken, at most the plan's
        let alpha = bitcast<f32>((8128u - (max(taken, 1u) - 1u)) << 17u);
        plan[its] = BLOCK_SPARSE;
        plan[its + 1u] = bitcast<u32>(min(alpha, bitcast<f32>(plan[its + 1u])));
    }
    column_count[p.column_count_at + head] = 0u;
    offset_count[p.offset_count_at + head] = 0u;
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let head = linear_group(at);
    if head >= p.n_heads {
        return;
    }
    if at.lane == 0u {
        s_kind = plan[p.plan_at + 4u * head];
    }
    let kind = workgroupUniformLoad(&s_kind);
    if kind != FLEX && kind != FIT {
        return;
    }
    let blocks = p.block_score_at + head * p.key_blocks;

    // estimated
    var mine = LOWEST;
    for (var c = at.lane; c < p.key_blocks; c += WORKGROUP) {
        mine = max(mine, block_score[blocks + c]);
    }
    let largest = group_max(at, mine);
    mine = 0.0;
    for (var c = at.lane; c < p.key_blocks; c += WORKGROUP) {
        mine += exp((block_score[blocks + c] - largest) * p.scale);
    }
    let total = group_sum(at, mine);

    if kind == FIT {
        fit(at, head, largest);
        return;
    }

    // divergence
    mine = 0.0;
    for (var c = at.lane; c < p.key_blocks; c += WORKGROUP) {
        let estimated = exp((block_score[blocks + c] - largest) * p.scale) / total;
        let real = real_mass(head, c);
        let middle = 0.5 * (estimated + real);
        mine += half_term(estimated, middle) + half_term(real, middle);
    }
    let distance = sqrt(max(group_sum(at, mine), 0.0));
    if at.lane != 0u {
        return;
    }

    let its = p.budget_at + 4u * head;
    let least = budget[its + 2u];
    let vertical = column_count[p.column_count_at + head];
    let slash = offset_count[p.offset_count_at + head];
    var row = vec4<u32>(VERTICAL_SLASH, vertical, slash, 0u);
    if distance < bitcast<f32>(budget[its + 1u]) {
        row = vec4<u32>(BLOCK_SPARSE, budget[its], min((least + 63u) / 64u, 0xffffu), HEAD_MASS);
    } else if vertical > plan[p.plan_at + 4u * head + 1u] || slash > plan[p.plan_at + 4u * head + 2u] || slash >= p.kv_len {
        row = vec4<u32>(DENSE, 0u, 0u, 0u);
    }
    for (var i = 0u; i < 4u; i++) {
        plan[p.plan_at + 4u * head + i] = row[i];
    }
    let kept = row.x == VERTICAL_SLASH;
    column_count[p.column_count_at + head] = select(0u, vertical, kept);
    offset_count[p.offset_count_at + head] = select(0u, slash, kept);
}
