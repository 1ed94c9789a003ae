// How this device lays 16 x 16 fragments out among the 32 lanes of a subgroup: what shared/coop_rows.wgsl relies on.
//
// An accumulator is loaded whose elements are their own places, 16 row + column, and each lane writes those it holds. Then
// it is made a left operand, element by element, and multiplied with the identity: the product is the same again where an
// operand lies as an accumulator does. The identity times a right operand whose elements are their own places, 8 lane +
// element, tells how that one lies.
struct Params {
    // where the slice begins in its binding, in elements
    out_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> out: array<f32>; // [3, 256]: elements lane by lane, two products

alias FragmentA = coop_mat16x16<f16, A>;
alias FragmentB = coop_mat16x16<f16, B>;
alias FragmentC = coop_mat16x16<f32, C>;

var<workgroup> s_places: array<f32, 256>;
var<workgroup> s_identity: array<f16, 256>;

@compute @workgroup_size(32)
fn main(at: Invocation) {
    for (var i = at.lane; i < 256u; i += 32u) {
        s_places[i] = f32(i);
        s_identity[i] = select(f16(0.0), f16(1.0), i % 17u == 0u);
    }
    workgroupBarrier();
    let e = elements_of(coopLoadT<FragmentC>(&s_places[0], 16u));
    let place = p.out_at + 8u * at.subgroup_lane;
    for (var i = 0u; i < 4u; i++) {
        out[place + i] = e.low[i];
        out[place + 4u + i] = e.high[i];
    }
    let identity = coopLoadT<FragmentB>(&s_identity[0], 16u);
    let product = coopMultiplyAdd(operand_of(e), identity, FragmentC());
    workgroupBarrier();
    coopStoreT(product, &s_places[0], 16u);
    workgroupBarrier();
    for (var i = at.lane; i < 256u; i += 32u) {
        out[p.out_at + 256u + i] = s_places[i];
    }
    workgroupBarrier();
    var words: vec4<u32>;
    for (var i = 0u; i < 4u; i++) {
        let first = f32(8u * at.subgroup_lane + 2u * i);
        words[i] = pack2x16float(vec2<f32>(first, first + 1.0));
    }
    let left = coopLoadT<FragmentA>(&s_identity[0], 16u);
    let right = coopMultiplyAdd(left, right_of(words), FragmentC());
    coopStoreT(right, &s_places[0], 16u);
    workgroupBarrier();
    for (var i = at.lane; i < 256u; i += 32u) {
        out[p.out_at + 512u + i] = s_places[i];
    }
}
