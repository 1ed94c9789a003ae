// Attention over a sparse index on cooperative matrices whose layout is known (shared/coop_rows.wgsl); what it computes and
// what it relies on is in attention.wgsl, how a group walks its tiles in shared/coop_walk.wgsl.
//
// Each subgroup owns RM x 16 rows and every key: scores, softmax and probabilities never leave its registers. Lane l has, of
// each fragment, rows l / 4 and l / 4 + 8, so that a row's maximum is two shuffles away, and the elements of an accumulator
// are those of a left operand. Only K and V go through workgroup memory, and the queries where they do not stay in
// registers.
//
// The output is rescaled only when a row's maximum has grown by a factor of 2^GROWTH: P and the sums use the same
// reference, so this is exact, and 2^GROWTH = 256 keeps P far inside f16.
@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let id = linear_group(at);
    if id >= p.heads * p.row_tiles {
        return;
    }
    let lane = at.subgroup_lane;
    let thread = at.subgroup * SG + lane;
    let own_row = at.subgroup * TEAM_ROWS;
    let block = own_row / 64u;
    let head = id % p.heads;
    let row0 = p.row_first + (p.row_tiles - 1u - id / p.heads) * ROWS;
    let kv_head = (p.head_in_group + head) / p.group_size;
    let k_base = half_of(p.k_at) + kv_head * (p.k_head_stride / 8u);
    let v_base = half_of(p.v_at) + kv_head * (p.v_head_stride / 8u);

    start_walk(head, row0 / 64u);
    let n_init = window[p.window_at + 2u * head];
    let n_local = window[p.window_at + 2u * head + 1u];
    let scale = p.scale * LOG2_E;

    var more = advance(block);
    if more {
        fetch_k(thread, k_base);
        fetch_v(thread, v_base);
    }
    stage_queries(thread, head, row0);
    workgroupBarrier();
    let queries = own_row * PITCH;
//@for r 0 RM
//@for d 0 Q_REGISTERS
    let q${r}_${d} = coopLoadT<FragmentA>(&s_tiles[queries + ${r*16}u * PITCH + ${2*d}u], PITCH);
//@end
//@end
    workgroupBarrier();

    // The output; of this lane's two rows the maxima, and this lane's part of the sums.
//@for r 0 RM
//@for n 0 ND
    var o${r}_${n} = FragmentC();
//@end
    var m${r} = vec2<f32>(LOWEST);
    var l${r} = vec2<f32>();
//@end
    // Positions of the first and the last query of this subgroup: what decides whether masks are needed.
    let first_position = p.q_start + row0 + own_row;
    let last_position = first_position + TEAM_ROWS - 1u;
    let lane_row = lane / 4u;
    let lane_column = 2u * (lane % 4u);

    while more {
        put_k(thread);
        workgroupBarrier();
        let in_columns = is_columns;
        let tile_start = tile_key;
        let tile_first = tile_from;
        let tile_end = tile_to;
        var any_column = 0u;
//@for w 0 WORDS
        let column_bits${w} = tile_bits${w};
        any_column |= column_bits${w};
//@end
        let busy = select(tile_first < tile_end, any_column != 0u, in_columns);
        more = advance(block);
        if more {
            fetch_k(thread, k_base);
        }

        // scores
//@for r 0 RM
//@for j 0 NB
        var p${r}_${j} = Elements();
//@end
//@end
        var heard = busy;
        if busy {
//@for r 0 RM
//@for j 0 NB
            var s${r}_${j} = FragmentC();
//@end
//@end
//@for d 0 ND
            {
//@for r 0 RM*Q_STAYS
                let q${r}_${d} = coopLoadT<FragmentA>(&s_tiles[queries + ${r*16}u * PITCH + ${2*d}u], PITCH);
//@end
//@for j 0 NB
                {
                    let b = coopLoad<FragmentB>(&s_tiles[K_PLACE + ${j*16}u * PITCH + ${2*d}u], PITCH);
//@for r 0 RM
                    s${r}_${j} = coopMultiplyAdd(q${r}_${d}, b, s${r}_${j});
//@end
                }
//@end
            }
//@end

//@for r 0 RM
//@for j 0 NB
            p${r}_${j} = elements_of(s${r}_${j});
//@end
//@end

            // masks, only where the tile needs them
            let ragged = tile_first > 0u || tile_end < BC;
            let diagonal = tile_start + tile_end > first_position + 1u;
            let windowed = tile_start + tile_end > n_init && last_position - min(last_position, tile_start) >= n_local;
            let masked = in_columns || ragged || diagonal || windowed;
            var grown = false;
//@for r 0 RM
            var low_top${r} = vec4<f32>(MASKED);
            var high_top${r} = vec4<f32>(MASKED);
            if masked {
//@for w 0 WORDS
                {
                    var bits = vec2<u32>(column_bits${w});
                    if !in_columns {
                        let position = first_position + ${r*16}u + lane_row;
                        let first = max(tile_first, ${32*w}u) - ${32*w}u;
                        let end = min(max(tile_end, ${32*w}u) - ${32*w}u, 32u);
                        bits.x = seen(tile_start + ${32*w}u, first, end, position, n_init, n_local);
                        bits.y = seen(tile_start + ${32*w}u, first, end, position + 8u, n_init, n_local);
                    }
                    let mine = bits >> vec2<u32>(lane_column);
//@for j 0 NB/WORDS
                    let columns${j} = vec4<u32>(1u, 2u, 256u, 512u) << vec4<u32>(${16*j}u);
                    let low${j} = mine.xxxx & columns${j};
                    let high${j} = mine.yyyy & columns${j};
                    p${r}_${w*NB/WORDS+j}.low = select(vec4<f32>(MASKED), p${r}_${w*NB/WORDS+j}.low, low${j} != vec4<u32>());
                    p${r}_${w*NB/WORDS+j}.high = select(vec4<f32>(MASKED), p${r}_${w*NB/WORDS+j}.high, high${j} != vec4<u32>());
//@end
                }
//@end
            }
//@for j 0 NB
            low_top${r} = max(low_top${r}, p${r}_${j}.low);
            high_top${r} = max(high_top${r}, p${r}_${j}.high);
//@end
            let low_pair${r} = max(low_top${r}.xy, low_top${r}.zw);
            let high_pair${r} = max(high_top${r}.xy, high_top${r}.zw);
            let top${r} = vec2<f32>(max(low_pair${r}.x, low_pair${r}.y), max(high_pair${r}.x, high_pair${r}.y));
            grown = grown || any(top${r} * scale > m${r} + GROWTH);
//@end

            // skip-softmax
            if SKIPS == 1u {
                var loud = false;
//@for r 0 RM
                loud = loud || any(top${r} * scale >= m${r} + p.skip_below * LOG2_E);
//@end
                heard = subgroupAny(loud);
            }

            if heard && subgroupAny(grown) {
//@for r 0 RM
                {
                    var highest = max(top${r}, subgroupShuffleXor(top${r}, 1u));
                    highest = max(highest, subgroupShuffleXor(highest, 2u)) * scale;
                    let now = max(m${r}, highest);
                    let shrink = exp2(m${r} - now);
                    m${r} = now;
                    l${r} *= shrink;
//@for n 0 ND
                    var e${n} = elements_of(o${r}_${n});
                    e${n}.low *= shrink.x;
                    e${n}.high *= shrink.y;
                    o${r}_${n} = accumulator_of(e${n});
//@end
                }
//@end
            }

            // probabilities
            if heard {
//@for r 0 RM
//@for j 0 NB
            p${r}_${j}.low = exp2(fma(p${r}_${j}.low, vec4<f32>(scale), vec4<f32>(-m${r}.x)));
            p${r}_${j}.high = exp2(fma(p${r}_${j}.high, vec4<f32>(scale), vec4<f32>(-m${r}.y)));
            {
                let low = p${r}_${j}.low.xy + p${r}_${j}.low.zw;
                let high = p${r}_${j}.high.xy + p${r}_${j}.high.zw;
                l${r} += vec2<f32>(low.x + low.y, high.x + high.y);
            }
//@end
//@end
            }
        }

        put_v(thread);
        workgroupBarrier();
        if more {
            fetch_v(thread, v_base);
        }

        // accumulate
        if heard {
//@for x 0 NB
            {
//@for r 0 RM
                let a${r} = operand_of(p${r}_${x});
//@end
//@for n 0 ND
                {
                    let b = coopLoadT<FragmentB>(&s_tiles[V_PLACE + ${x*16}u * PITCH + ${2*n}u], PITCH);
//@for r 0 RM
                    o${r}_${n} = coopMultiplyAdd(a${r}, b, o${r}_${n});
//@end
                }
//@end
            }
//@end
        }
    }

    // output: two lanes join their pairs of columns, so that each stores four neighbours
    let out_base = p.out_at + head * (p.out_head_stride / 4u);
    let odd = lane % 2u == 1u;
//@for r 0 RM
    {
        var sum = l${r} + subgroupShuffleXor(l${r}, 1u);
        sum += subgroupShuffleXor(sum, 2u);
        let inverse = select(vec2<f32>(), 1.0 / sum, sum > vec2<f32>());
        let row = row0 + own_row + ${r*16}u + lane_row;
        if p.write_lse != 0u && lane % 4u == 0u {
            let place = p.lse_at + head * p.q_len + row;
            let none = bitcast<f32>(negative_infinity);
            if row < p.q_len {
                lse[place] = select(none, (m${r}.x + log2(sum.x)) * LN_2, sum.x > 0.0);
            }
            if row + 8u < p.q_len {
                lse[place + 8u] = select(none, (m${r}.y + log2(sum.y)) * LN_2, sum.y > 0.0);
            }
        }
        let place = out_base + (row - p.row_first) * (p.out_row_stride / 4u);
//@for n 0 ND
        {
            var e = elements_of(o${r}_${n});
            e.low *= inverse.x;
            e.high *= inverse.y;
            let left = vec4<f32>(e.low.xy, e.high.xy);
            let right = vec4<f32>(e.low.zw, e.high.zw);
            let other = subgroupShuffleXor(select(right, left, odd), 1u);
            let first = select(vec4<f32>(left.xy, other.xy), vec4<f32>(other.xy, right.xy), odd);
            let second = select(vec4<f32>(left.zw, other.zw), vec4<f32>(other.zw, right.zw), odd);
            let d = ${4*n}u + 2u * (lane % 2u) + lane % 4u / 2u;
            if row < p.q_len && d < p.head_dim / 4u {
                out[place + d] = to_out(first);
            }
            if row + 8u < p.q_len && d < p.head_dim / 4u {
                out[place + 8u * (p.out_row_stride / 4u) + d] = to_out(second);
            }
        }
//@end
    }
//@end
}
