// Attention over a sparse index on cooperative matrices, in plain WGSL; what it computes and what it relies on is in
// attention.wgsl, how a group walks its tiles in shared/coop_walk.wgsl.
//
// A tile of BC keys and values lies in workgroup memory. Scores come out of the matrices, which have no exponential and no
// row maximum, through f32 workgroup memory, go through the softmax a few lanes a row, and enter the second product as
// f16. In the first product a team divides the keys, in the second the elements of the head; the softmax by rows.
//
// The output is rescaled only when a row's maximum has grown by a factor of 2^GROWTH: P and the sums use the same
// reference, so this is exact, and 2^GROWTH = 256 keeps P far inside f16. It replaces a trip through workgroup memory a
// tile, which per-row scaling of a matrix costs, by a vote.
@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let id = linear_group(at);
    if id >= p.heads * p.row_tiles {
        return;
    }
    let lane = at.subgroup_lane;
    let thread = at.subgroup * SG + lane;
    let team_row = at.subgroup / TEAM * TEAM_ROWS;
    let member = at.subgroup % TEAM;
    let block = team_row / 64u;
    let head = id % p.heads;
    let row0 = p.row_first + (p.row_tiles - 1u - id / p.heads) * ROWS;
    let kv_head = (p.head_in_group + head) / p.group_size;
    let k_base = half_of(p.k_at) + kv_head * (p.k_head_stride / 8u);
    let v_base = half_of(p.v_at) + kv_head * (p.v_head_stride / 8u);

    start_walk(head, row0 / 64u);
    let n_init = window[p.window_at + 2u * head];
    let n_local = window[p.window_at + 2u * head + 1u];
    let scale = p.scale * LOG2_E;

    // queries, through the place of K, BC rows at a time
//@for r 0 RM
//@for d 0 ND
    var q${r}_${d} = FragmentA();
//@end
//@end
    for (var row_pass = 0u; row_pass < ROWS; row_pass += BC) {
        workgroupBarrier();
        stage_queries(thread, head, row0 + row_pass);
        workgroupBarrier();
//@for r 0 RM
        if (team_row + ${r*CM}u) / BC * BC == row_pass {
            let place = ((team_row + ${r*CM}u) % BC * KV_PITCH) / UNIT;
//@for d 0 ND
            q${r}_${d} = coopLoadT<FragmentA>(&s_k[place + ${d*CM}u / UNIT], KV_PITCH / UNIT);
//@end
        }
//@end
    }

//@for r 0 RM
//@for n 0 ND_MEMBER
    var o${r}_${n} = FragmentC();
//@end
//@end
    // This lane's row in the softmax and its share of it, in a step of SOFTMAX_ROWS rows; and its part of output fragments.
    let softmax_row = team_row + member * SOFTMAX_TILES * SOFTMAX_ROWS + lane / LANES_ROW;
    let share = lane % LANES_ROW;
    let out_row = lane / LANES_OUT;
    let out_share = lane % LANES_OUT;
    let out_scratch = team_row * S_PITCH + member * (BC / TEAM);
//@for x 0 SOFTMAX_TILES
    var m${x} = LOWEST;
    var l${x} = 0.0;
//@end
    var fresh = true;
    // Positions of the first and the last query of this subgroup in the softmax: what decides whether masks are needed.
    let first_position = p.q_start + row0 + team_row + member * SOFTMAX_TILES * SOFTMAX_ROWS;
    let last_position = first_position + SOFTMAX_TILES * SOFTMAX_ROWS - 1u;

    var more = advance(block);
    if PREFETCH != 0u && more {
        fetch(thread, k_base, v_base);
    }
    while more {
        // stage this tile, and fetch the next
        if PREFETCH == 0u {
            fetch(thread, k_base, v_base);
        }
        workgroupBarrier();
        stage_tile(thread);
        let in_columns = is_columns;
        let tile_start = tile_key;
        let tile_first = tile_from;
        let tile_end = tile_to;
        let column_bits = tile_bits0;
        let busy = select(tile_first < tile_end, column_bits != 0u, in_columns);
        workgroupBarrier();
        more = advance(block);
        if PREFETCH != 0u && more {
            fetch(thread, k_base, v_base);
        }

        // scores
        if busy {
//@for r 0 RM
//@for j 0 NB_MEMBER
            var s${r}_${j} = FragmentC();
//@end
//@end
            let keys = member * (NB_MEMBER * CM * KV_PITCH / UNIT);
//@for d 0 ND
//@for j 0 NB_MEMBER
            {
                let b = coopLoad<FragmentB>(&s_k[keys + (${j*CM}u * KV_PITCH + ${d*CM}u) / UNIT], KV_PITCH / UNIT);
//@for r 0 RM
                s${r}_${j} = coopMultiplyAdd(q${r}_${d}, b, s${r}_${j});
//@end
            }
//@end
//@end
            // naga 30 needs the operands of a store as values of their own.
            let scores = (team_row * S_PITCH + member * (NB_MEMBER * CM)) / UNIT;
//@for r 0 RM
//@for j 0 NB_MEMBER
            let value${r}_${j} = s${r}_${j};
            let place${r}_${j} = scores + (${r*CM}u * S_PITCH + ${j*CM}u) / UNIT;
            coopStoreT(value${r}_${j}, &s_s[place${r}_${j}], S_PITCH / UNIT);
//@end
//@end
        }
        team_barrier();

        // masks, only where the tile needs them, and online softmax
        var grown = false;
        // Skip-softmax: whether a row of this subgroup, and of its team, is loud enough to be computed.
        var loud = false;
        if busy {
            let ragged = tile_first > 0u || tile_end < BC;
            let diagonal = tile_start + tile_end > first_position + 1u;
            let windowed = tile_start + tile_end > n_init && last_position - min(last_position, tile_start) >= n_local;
            let masked = in_columns || ragged || diagonal || windowed;
//@for x 0 SOFTMAX_TILES
            {
                let row = softmax_row + ${x}u * SOFTMAX_ROWS;
//@for c 0 VECS_ROW
                var e${c} = get_s(row * S_PITCH + 4u * (${c*LANES_ROW}u + share)) * scale;
//@end
                if masked {
                    let position = p.q_start + row0 + row;
                    var bits = column_bits;
                    if !in_columns {
                        bits = seen(tile_start, tile_first, tile_end, position, n_init, n_local);
                    }
//@for c 0 VECS_ROW
                    {
                        let nibble = bits >> (4u * (${c*LANES_ROW}u + share));
                        e${c} = select(vec4<f32>(MASKED), e${c}, (vec4<u32>(nibble) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>(0u));
                    }
//@end
                }
                var top = e0;
//@for c 1 VECS_ROW
                top = max(top, e${c});
//@end
                var highest = max(max(top.x, top.y), max(top.z, top.w));
//@for s 0 LOG_LANES_ROW
                highest = max(highest, subgroupShuffleXor(highest, 1u << ${s}u));
//@end
                var heard = true;
                if SKIPS == 1u {
                    heard = subgroupAny(highest >= m${x} + p.skip_below * LOG2_E);
                }
                loud = loud || heard;
                let grows = heard && subgroupAny(highest > m${x} + GROWTH);
                grown = grown || grows;
                let m = select(m${x}, max(m${x}, highest), grows);
                let shrink = exp2(m${x} - m);
                m${x} = m;
                if share == 0u {
                    s_shrink[row] = shrink;
                }
                var sum = vec4<f32>();
//@for c 0 VECS_ROW
                {
                    var h = vec4<f16>();
                    if heard {
                        h = vec4<f16>(exp2(e${c} - m));
                    }
                    sum += vec4<f32>(h);
                    put_p(row * P_PITCH + 4u * (${c*LANES_ROW}u + share), h);
                }
//@end
                l${x} = l${x} * shrink + (sum.x + sum.y + sum.z + sum.w);
            }
//@end
            // Nothing to rescale yet.
            grown = grown && !fresh;
            fresh = false;
            if TEAM > 1u && lane == 0u {
                s_vote[at.subgroup] = u32(grown) | 2u * u32(loud);
            }
        }
        team_barrier();

        if busy {
            if TEAM > 1u {
                grown = false;
//@for t 0 TEAM
                grown = grown || (s_vote[at.subgroup - member + ${t}u] & 1u) != 0u;
                loud = loud || (s_vote[at.subgroup - member + ${t}u] & 2u) != 0u;
//@end
            }
            // rescale, OUT_GROUP fragments at a time through this subgroup's part of the scores
            if grown {
//@for r 0 RM
//@for g 0 OUT_GROUPS
//@for i 0 OUT_GROUP
                {
                    let value = o${r}_${g*OUT_GROUP+i};
                    let place = (out_scratch + ${r*CM}u * S_PITCH + ${i*CM}u) / UNIT;
                    coopStoreT(value, &s_s[place], S_PITCH / UNIT);
                }
//@end
                subgroupBarrier();
//@for c 0 VECS_OUT
                {
                    let place = out_scratch + (${r*CM}u + out_row) * S_PITCH + 4u * (${c*LANES_OUT}u + out_share);
                    put_s(place, get_s(place) * s_shrink[team_row + ${r*CM}u + out_row]);
                }
//@end
                subgroupBarrier();
//@for i 0 OUT_GROUP
                o${r}_${g*OUT_GROUP+i} = coopLoadT<FragmentC>(&s_s[(out_scratch + ${r*CM}u * S_PITCH + ${i*CM}u) / UNIT], S_PITCH / UNIT);
//@end
                subgroupBarrier();
//@end
//@end
            }

            // accumulate
            let values = member * (ND_MEMBER * CM / UNIT);
            if loud {
//@for x 0 NB
            {
//@for r 0 RM
                let a${r} = coopLoadT<FragmentA>(&s_p[((team_row + ${r*CM}u) * P_PITCH + ${x*CM}u) / UNIT], P_PITCH / UNIT);
//@end
//@for n 0 ND_MEMBER
                {
                    let b = coopLoadT<FragmentB>(&s_v[values + (${x*CM}u * KV_PITCH + ${n*CM}u) / UNIT], KV_PITCH / UNIT);
//@for r 0 RM
                    o${r}_${n} = coopMultiplyAdd(a${r}, b, o${r}_${n});
//@end
                }
//@end
            }
//@end
            }
        }
    }

    // output
//@for x 0 SOFTMAX_TILES
    {
        let row = softmax_row + ${x}u * SOFTMAX_ROWS;
        var sum = l${x};
//@for s 0 LOG_LANES_ROW
        sum += subgroupShuffleXor(sum, 1u << ${s}u);
//@end
        if share == 0u {
            s_shrink[row] = select(0.0, 1.0 / sum, sum > 0.0);
            if p.write_lse != 0u && row0 + row < p.q_len {
                lse[p.lse_at + head * p.q_len + row0 + row] =
                    select(bitcast<f32>(negative_infinity), (m${x} + log2(sum)) * LN_2, sum > 0.0);
            }
        }
    }
//@end
    team_barrier();
    let out_base = p.out_at + head * (p.out_head_stride / 4u);
//@for r 0 RM
//@for g 0 OUT_GROUPS
//@for i 0 OUT_GROUP
    {
        let value = o${r}_${g*OUT_GROUP+i};
        let place = (out_scratch + ${r*CM}u * S_PITCH + ${i*CM}u) / UNIT;
        coopStoreT(value, &s_s[place], S_PITCH / UNIT);
    }
//@end
    subgroupBarrier();
    {
        let row = team_row + ${r*CM}u + out_row;
        if row0 + row < p.q_len {
            let row_base = out_base + (row0 + row - p.row_first) * (p.out_row_stride / 4u);
//@for c 0 VECS_OUT
            {
                let d = member * (ND_MEMBER * CM / 4u) + ${g*OUT_GROUP*CM/4}u + ${c*LANES_OUT}u + out_share;
                if d < p.head_dim / 4u {
                    let place = out_scratch + (${r*CM}u + out_row) * S_PITCH + 4u * (${c*LANES_OUT}u + out_share);
                    out[row_base + d] = to_out(get_s(place) * s_shrink[row]);
                }
            }
//@end
        }
    }
    subgroupBarrier();
//@end
//@end
}
