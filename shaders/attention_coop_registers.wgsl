// Attention over a sparse index on cooperative matrices whose elements can be worked on in registers (shared/
// coop_elements.wgsl); what it computes and what it relies on is in attention.wgsl, how a group walks its tiles in shared/
// coop_walk.wgsl.
//
// As in attention_coop.wgsl, but scores stay in fragments: P = 2^(scale * S - m), with the reference maxima m of the rows
// as a fragment too, goes to workgroup memory as f16 only, and the sums are kept as fragments, a partial sum an element.
// Only what needs whole rows passes through f32 workgroup memory: masks, where a tile needs them, and new maxima, where
// any score of the group has grown past its row's reference by a factor of 2^GROWTH. A tile is first taken as if none had:
// P is written, and the vote that ends the step says whether it stands.
//
// A row's reference is its first tile's maximum; while a row has met no key, every tile goes the long way.
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
    let k_base = p.k_at / 2u + kv_head * (p.k_head_stride / 8u);
    let v_base = p.v_at / 2u + kv_head * (p.v_head_stride / 8u);

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

    // Fragments of the output, of the reference maxima (a row's in all its elements) and of the sums.
//@for r 0 RM
//@for n 0 ND_MEMBER
    var o${r}_${n} = FragmentC();
//@end
    var m${r} = FragmentC();
    var l${r} = FragmentC();
//@end
    // This lane's row where whole rows are looked at, and its share of it, in a step of SOFTMAX_ROWS rows; the reference
    // maxima of those rows, and whether they have one.
    let softmax_row = team_row + member * SOFTMAX_TILES * SOFTMAX_ROWS + lane / LANES_ROW;
    let share = lane % LANES_ROW;
//@for x 0 SOFTMAX_TILES
    var reference${x} = 0.0;
    var known${x} = false;
//@end
    var all_known = false;
    // The same for a fragment, within this subgroup's columns of the scores.
    let out_row = lane / LANES_OUT;
    let out_share = lane % LANES_OUT;
    let scratch = team_row * S_PITCH + member * (BC / TEAM);
    // Positions of the first and the last query of the team: what decides whether masks are needed.
    let first_position = p.q_start + row0 + team_row;
    let last_position = first_position + TEAM_ROWS - 1u;

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

        // scores, scaled, less the reference
//@for r 0 RM
//@for j 0 NB_MEMBER
        var s${r}_${j} = FragmentC();
        var e${r}_${j} = FragmentC();
//@end
//@end
        var grown = false;
        if busy {
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
//@for r 0 RM
//@for j 0 NB_MEMBER
            s${r}_${j} = s${r}_${j} * scale;
//@end
//@end

            // masks
            let ragged = tile_first > 0u || tile_end < BC;
            let diagonal = tile_start + tile_end > first_position + 1u;
            let windowed = tile_start + tile_end > n_init && last_position - min(last_position, tile_start) >= n_local;
            if in_columns || ragged || diagonal || windowed {
//@for r 0 RM
//@for j 0 NB_MEMBER
                {
                    let value = s${r}_${j};
                    let place = (scratch + ${r*CM}u * S_PITCH + ${j*CM}u) / UNIT;
                    coopStoreT(value, &s_s[place], S_PITCH / UNIT);
                }
//@end
//@end
                subgroupBarrier();
//@for r 0 RM
                {
                    var bits = column_bits;
                    if !in_columns {
                        let position = first_position + ${r*CM}u + out_row;
                        bits = seen(tile_start, tile_first, tile_end, position, n_init, n_local);
                    }
//@for c 0 VECS_MEMBER
                    {
                        let column = 4u * (${c*LANES_OUT}u + out_share);
                        let place = scratch + (${r*CM}u + out_row) * S_PITCH + column;
                        let nibble = bits >> (member * (BC / TEAM) + column);
                        let in_tile = (vec4<u32>(nibble) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>(0u);
                        put_s(place, select(vec4<f32>(MASKED), get_s(place), in_tile));
                    }
//@end
                }
//@end
                subgroupBarrier();
//@for r 0 RM
//@for j 0 NB_MEMBER
                s${r}_${j} = coopLoadT<FragmentC>(&s_s[(scratch + ${r*CM}u * S_PITCH + ${j*CM}u) / UNIT], S_PITCH / UNIT);
//@end
//@end
                subgroupBarrier();
            }

            // P, as if no row had grown
            var top = LOWEST;
//@for r 0 RM
//@for j 0 NB_MEMBER
            s${r}_${j} = s${r}_${j} - m${r};
            top = max(top, fragment_max(s${r}_${j}));
//@end
//@end
            grown = subgroupAny(top > GROWTH) || !all_known;
//@for r 0 RM
//@for j 0 NB_MEMBER
            {
                e${r}_${j} = fragment_exp2(s${r}_${j});
                let value = fragment_f16(e${r}_${j});
                let place = ((team_row + ${r*CM}u) * P_PITCH + member * (NB_MEMBER * CM) + ${j*CM}u) / UNIT;
                coopStoreT(value, &s_p[place], P_PITCH / UNIT);
            }
//@end
//@end
        }
        if TEAM > 1u && lane == 0u {
            s_vote[at.subgroup] = u32(grown);
        }
        team_barrier();
        // A team that shares rows goes the long way together, and with it the whole group, for the barriers' sake.
        var long_way = grown;
        if TEAM > 1u {
            grown = false;
//@for t 0 TEAM
            grown = grown || s_vote[at.subgroup - member + ${t}u] != 0u;
//@end
            long_way = false;
            for (var i = 0u; i < SUBGROUPS; i++) {
                long_way = long_way || s_vote[i] != 0u;
            }
        }
        if long_way {
            // new maxima: rows that had none take that of this tile, others grow
            if grown {
//@for r 0 RM
//@for j 0 NB_MEMBER
                {
                    let value = s${r}_${j};
                    let place = (scratch + ${r*CM}u * S_PITCH + ${j*CM}u) / UNIT;
                    coopStoreT(value, &s_s[place], S_PITCH / UNIT);
                }
//@end
//@end
            }
            team_barrier();
            if grown {
                all_known = true;
//@for x 0 SOFTMAX_TILES
                {
                    let row = softmax_row + ${x}u * SOFTMAX_ROWS;
                    var top = vec4<f32>(MASKED);
//@for c 0 VECS_ROW
                    top = max(top, get_s(row * S_PITCH + 4u * (${c*LANES_ROW}u + share)));
//@end
                    var highest = max(max(top.x, top.y), max(top.z, top.w));
//@for s 0 LOG_LANES_ROW
                    highest = max(highest, subgroupShuffleXor(highest, 1u << ${s}u));
//@end
                    // Below LOWEST: all masked.
                    let step = select(select(0.0, highest, highest > LOWEST), max(highest, 0.0), known${x});
                    // What a row without a reference has is zero: it stays, and 2^-step could be infinite.
                    let shrink = select(1.0, exp2(-step), known${x});
                    known${x} = known${x} || highest > LOWEST;
                    all_known = all_known && subgroupAll(known${x});
                    reference${x} += step;
                    if share == 0u {
                        s_shrink[row] = shrink;
                    }
                    // The row has been read: its first CM columns take the reference.
                    subgroupBarrier();
                    for (var c = 4u * share; c < CM; c += 4u * LANES_ROW) {
                        put_s(row * S_PITCH + c, vec4<f32>(reference${x}));
                    }
                }
//@end
            }
            team_barrier();
            if grown {
//@for r 0 RM
                {
                    let now = coopLoadT<FragmentC>(&s_s[(team_row + ${r*CM}u) * S_PITCH / UNIT], S_PITCH / UNIT);
//@for j 0 NB_MEMBER
                    s${r}_${j} = s${r}_${j} + (m${r} - now);
                    e${r}_${j} = fragment_exp2(s${r}_${j});
//@end
                    m${r} = now;
                }
//@end
            }
            team_barrier();
            if grown {
                // rescale, a few fragments at a time through this subgroup's part of the scores, the sums last
//@for r 0 RM
//@for g 0 OUT_GROUPS
//@for i 0 OUT_GROUP
                {
                    let value = o${r}_${g*OUT_GROUP+i};
                    let place = (scratch + ${r*CM}u * S_PITCH + ${i*CM}u) / UNIT;
                    coopStoreT(value, &s_s[place], S_PITCH / UNIT);
                }
//@end
                subgroupBarrier();
//@for c 0 VECS_OUT
                {
                    let place = scratch + (${r*CM}u + out_row) * S_PITCH + 4u * (${c*LANES_OUT}u + out_share);
                    put_s(place, get_s(place) * s_shrink[team_row + ${r*CM}u + out_row]);
                }
//@end
                subgroupBarrier();
//@for i 0 OUT_GROUP
                o${r}_${g*OUT_GROUP+i} = coopLoadT<FragmentC>(&s_s[(scratch + ${r*CM}u * S_PITCH + ${i*CM}u) / UNIT], S_PITCH / UNIT);
//@end
                subgroupBarrier();
//@end
                {
                    let value = l${r};
                    let place = (scratch + ${r*CM}u * S_PITCH) / UNIT;
                    coopStoreT(value, &s_s[place], S_PITCH / UNIT);
                }
                subgroupBarrier();
                for (var c = 4u * out_share; c < CM; c += 4u * LANES_OUT) {
                    let place = scratch + (${r*CM}u + out_row) * S_PITCH + c;
                    put_s(place, get_s(place) * s_shrink[team_row + ${r*CM}u + out_row]);
                }
                subgroupBarrier();
                l${r} = coopLoadT<FragmentC>(&s_s[(scratch + ${r*CM}u * S_PITCH) / UNIT], S_PITCH / UNIT);
                subgroupBarrier();
//@end
                // P again
//@for r 0 RM
//@for j 0 NB_MEMBER
                {
                    let value = fragment_f16(e${r}_${j});
                    let place = ((team_row + ${r*CM}u) * P_PITCH + member * (NB_MEMBER * CM) + ${j*CM}u) / UNIT;
                    coopStoreT(value, &s_p[place], P_PITCH / UNIT);
                }
//@end
//@end
            }
            team_barrier();
        }

        // accumulate
        if busy {
            let values = member * (ND_MEMBER * CM / UNIT);
//@for r 0 RM
//@for j 0 NB_MEMBER
            l${r} = l${r} + e${r}_${j};
//@end
//@end
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

    // sums of rows: those of all members lie side by side
    team_barrier();
//@for r 0 RM
    {
        let value = l${r};
        let place = (team_row * S_PITCH + ${r*CM}u * S_PITCH + member * CM) / UNIT;
        coopStoreT(value, &s_s[place], S_PITCH / UNIT);
    }
//@end
    team_barrier();
//@for x 0 SOFTMAX_TILES
    {
        let row = softmax_row + ${x}u * SOFTMAX_ROWS;
        var parts = vec4<f32>();
        for (var c = 4u * share; c < TEAM * CM; c += 4u * LANES_ROW) {
            parts += get_s(row * S_PITCH + c);
        }
        var sum = parts.x + parts.y + parts.z + parts.w;
//@for s 0 LOG_LANES_ROW
        sum += subgroupShuffleXor(sum, 1u << ${s}u);
//@end
        if share == 0u {
            s_shrink[row] = select(0.0, 1.0 / sum, sum > 0.0);
            if p.write_lse != 0u && row0 + row < p.q_len {
                lse[p.lse_at + head * p.q_len + row0 + row] =
                    select(bitcast<f32>(negative_infinity), (reference${x} + log2(sum)) * LN_2, sum > 0.0);
            }
        }
    }
//@end
    team_barrier();

    // output
    let out_base = p.out_at + head * (p.out_head_stride / 4u);
//@for r 0 RM
//@for g 0 OUT_GROUPS
//@for i 0 OUT_GROUP
    {
        let value = o${r}_${g*OUT_GROUP+i};
        let place = (scratch + ${r*CM}u * S_PITCH + ${i*CM}u) / UNIT;
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
                    let place = scratch + (${r*CM}u + out_row) * S_PITCH + 4u * (${c*LANES_OUT}u + out_share);
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
