//! Element by element operations on cooperative matrices, which SPIR-V has and WGSL has not.
//!
//! `shaders/shared/coop_rows.wgsl` and `coop_words.wgsl` declare them as functions with empty bodies. naga writes the
//! module as SPIR-V, and [`splice`] puts the real bodies in, found by name: loads and stores of the elements that a lane
//! holds (`OpAccessChain` into a matrix), unrolled, with a conversion where the matrix is of f16. Which elements those are
//! is the driver's affair: `attention_rows.rs` asks the device before it relies on it.
//!
//! With them scores, their exponentials and the operand of the second product stay in registers, and operands can come
//! from memory in whatever order a kernel keeps them in.

use crate::{Error, Result};
use std::collections::HashMap;

// Instructions of SPIR-V 1.x, section 3.52.
const NAME: u32 = 5;
const TYPE_INT: u32 = 21;
const TYPE_FLOAT: u32 = 22;
const TYPE_VECTOR: u32 = 23;
const TYPE_STRUCT: u32 = 30;
const TYPE_POINTER: u32 = 32;
const CONSTANT: u32 = 43;
const FUNCTION: u32 = 54;
const FUNCTION_PARAMETER: u32 = 55;
const FUNCTION_END: u32 = 56;
const VARIABLE: u32 = 59;
const LOAD: u32 = 61;
const STORE: u32 = 62;
const ACCESS_CHAIN: u32 = 65;
const COMPOSITE_CONSTRUCT: u32 = 80;
const COMPOSITE_EXTRACT: u32 = 81;
const F_CONVERT: u32 = 115;
const BITCAST: u32 = 124;
const LABEL: u32 = 248;
const TYPE_COOPERATIVE_MATRIX: u32 = 4456;
const COOPERATIVE_MATRIX_LOAD: u32 = 4457;
const RETURN_VALUE: u32 = 254;
const STORAGE_FUNCTION: u32 = 7;

/// Words before the first instruction; the fourth is the bound of ids.
const HEADER: usize = 5;

/// What a body does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Elements,
    Accumulator,
    Operand,
    Words,
}

const FUNCTIONS: [(&str, Operation); 5] = [
    ("elements_of", Operation::Elements),
    ("accumulator_of", Operation::Accumulator),
    ("operand_of", Operation::Operand),
    ("left_of", Operation::Words),
    ("right_of", Operation::Words),
];

/// An instruction: where it begins, and its words, the first being length and code.
struct Instruction<'a> {
    at: usize,
    words: &'a [u32],
}

impl Instruction<'_> {
    fn code(&self) -> u32 {
        self.words[0] & 0xffff
    }
}

fn instructions(words: &[u32]) -> Result<Vec<Instruction<'_>>> {
    let mut found = Vec::new();
    let mut at = HEADER;
    while at < words.len() {
        let length = (words[at] >> 16) as usize;
        if length == 0 || at + length > words.len() {
            return Err(Error::Device(format!("SPIR-V: an instruction of {length} words at {at} of {}", words.len())));
        }
        found.push(Instruction { at, words: &words[at..at + length] });
        at += length;
    }
    Ok(found)
}

/// A SPIR-V string: little-endian bytes up to the first zero.
fn text(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    String::from_utf8_lossy(&bytes.take_while(|byte| *byte != 0).collect::<Vec<_>>()).into_owned()
}

fn push(out: &mut Vec<u32>, code: u32, operands: &[u32]) {
    out.push((operands.len() as u32 + 1) << 16 | code);
    out.extend_from_slice(operands);
}

/// Ids of types and constants that bodies use: those of the module, or new ones.
struct Ids {
    next: u32,
    /// Declarations to put before the first function.
    declared: Vec<u32>,
    pointers: HashMap<u32, u32>,
    float: u32,
    indices: Vec<u32>,
}

impl Ids {
    fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// A vector type that the module has not.
    fn vector(&mut self, of: u32, length: u32) -> u32 {
        let id = self.fresh();
        push(&mut self.declared, TYPE_VECTOR, &[id, of, length]);
        id
    }

    /// A pointer to a variable of this type. SPIR-V allows several pointer types of one kind.
    fn pointer(&mut self, to: u32) -> u32 {
        if let Some(&id) = self.pointers.get(&to) {
            return id;
        }
        let id = self.fresh();
        push(&mut self.declared, TYPE_POINTER, &[id, STORAGE_FUNCTION, to]);
        self.pointers.insert(to, id);
        id
    }
}

/// Puts the bodies of `shared/coop_rows.wgsl` and `coop_words.wgsl` into a module that naga wrote with names; a lane holds `elements` of a
/// fragment.
pub(super) fn splice(words: &[u32], elements: u32) -> Result<Vec<u32>> {
    let all = instructions(words)?;
    let missing = |what: &str| Error::Device(format!("SPIR-V: no {what} in the module"));
    let find = |code: u32, matches: &dyn Fn(&[u32]) -> bool| {
        all.iter().find(|i| i.code() == code && matches(i.words)).map(|i| i.words[1])
    };
    let functions: Vec<(u32, Operation)> = all
        .iter()
        .filter(|i| i.code() == NAME)
        .filter_map(|i| {
            let name = text(&i.words[2..]);
            FUNCTIONS.iter().find(|(known, _)| *known == name).map(|(_, operation)| (i.words[1], *operation))
        })
        .collect();
    if functions.is_empty() {
        return Err(missing("function of coop_rows.wgsl"));
    }

    let uint = find(TYPE_INT, &|w| w[2..] == [32, 0]).ok_or_else(|| missing("type u32"))?;
    let float = find(TYPE_FLOAT, &|w| w[2] == 32).ok_or_else(|| missing("type f32"))?;
    let mut ids = Ids { next: words[3], declared: vec![], pointers: HashMap::new(), float, indices: vec![] };
    for index in 0..elements {
        let id = ids.fresh();
        push(&mut ids.declared, CONSTANT, &[uint, id, index]);
        ids.indices.push(id);
    }
    let _ = ids.pointer(float);

    // The type of a struct's first member.
    let find_struct = |id: u32| {
        all.iter().find(|i| i.code() == TYPE_STRUCT && i.words[1] == id && i.words.len() == 4).map(|i| i.words[2])
    };
    // First the bodies, which declare pointer types, then the module around them.
    let mut bodies = Vec::new();
    let mut pair = None;
    for (i, instruction) in all.iter().enumerate().filter(|(_, i)| i.code() == FUNCTION) {
        let Some((_, operation)) = functions.iter().find(|(id, _)| *id == instruction.words[2]) else { continue };
        let parameter = all.get(i + 1).filter(|p| p.code() == FUNCTION_PARAMETER);
        let parameter = parameter.ok_or_else(|| missing("parameter of a function of coop_rows.wgsl"))?;
        let end = all[i..].iter().find(|j| j.code() == FUNCTION_END).ok_or_else(|| missing("end of a function"))?;
        let (result, given) = (instruction.words[1], [parameter.words[1], parameter.words[2]]);
        let body = match operation {
            Operation::Elements => {
                let quad = find_struct(result).ok_or_else(|| missing("struct of elements"))?;
                elements_of(&mut ids, result, quad, given)
            }
            Operation::Accumulator => fragment_of(&mut ids, result, None, given[1]),
            Operation::Operand => {
                let half = find(TYPE_FLOAT, &|w| w[2] == 16).ok_or_else(|| missing("type f16"))?;
                fragment_of(&mut ids, result, Some(half), given[1])
            }
            Operation::Words => {
                let half = find(TYPE_FLOAT, &|w| w[2] == 16).ok_or_else(|| missing("type f16"))?;
                let known = find(TYPE_VECTOR, &|w| w[2..] == [half, 2]);
                let both = *pair.get_or_insert_with(|| known.unwrap_or_else(|| ids.vector(half, 2)));
                words_of(&mut ids, result, [uint, half, both], given[1])
            }
        };
        bodies.push((parameter.at + parameter.words.len(), end.at, body));
    }
    let first_function = all.iter().find(|i| i.code() == FUNCTION).map_or(words.len(), |i| i.at);
    let mut out = words[..first_function].to_vec();
    out.extend(&ids.declared);
    let mut from = first_function;
    for (start, end, body) in bodies {
        out.extend(&words[from..start]);
        out.extend(body);
        from = end;
    }
    out.extend(&words[from..]);
    out[3] = ids.next;
    Ok(out)
}

/// Makes loads of matrices from an array of words loads of f16 matrices. SPIR-V lets a matrix be loaded from elements of
/// any type; WGSL takes the matrix's type from the elements, so that naga writes loads of u32 matrices.
pub(super) fn matrices_of_words(words: &[u32]) -> Result<Vec<u32>> {
    let all = instructions(words)?;
    let missing = |what: &str| Error::Device(format!("SPIR-V: no {what} in the module"));
    let find = |code: u32, matches: &dyn Fn(&[u32]) -> bool| {
        all.iter().find(|i| i.code() == code && matches(i.words)).map(|i| i.words[1])
    };
    let uint = find(TYPE_INT, &|w| w[2..] == [32, 0]).ok_or_else(|| missing("type u32"))?;
    let half = find(TYPE_FLOAT, &|w| w[2] == 16).ok_or_else(|| missing("type f16"))?;
    // From each type of u32 matrices to that of f16 with the same scope, shape and use.
    let mut types = HashMap::new();
    for matrix in all.iter().filter(|i| i.code() == TYPE_COOPERATIVE_MATRIX && i.words[2] == uint) {
        let twin = find(TYPE_COOPERATIVE_MATRIX, &|w| w[2] == half && w[3..] == matrix.words[3..]);
        types.insert(matrix.words[1], twin.ok_or_else(|| missing("matrix type of f16"))?);
    }
    let mut out = words[..HEADER].to_vec();
    for instruction in &all {
        match (instruction.code(), instruction.words.get(1).and_then(|id| types.get(id))) {
            (TYPE_COOPERATIVE_MATRIX, Some(_)) => {}
            (COOPERATIVE_MATRIX_LOAD, Some(&twin)) => {
                out.extend([instruction.words[0], twin]);
                out.extend(&instruction.words[2..]);
            }
            _ => out.extend(instruction.words),
        }
    }
    Ok(out)
}

/// A struct of two vectors of four with what a lane holds of a matrix.
fn elements_of(ids: &mut Ids, result: u32, quad: u32, [matrix, parameter]: [u32; 2]) -> Vec<u32> {
    let mut out = Vec::new();
    push(&mut out, LABEL, &[ids.fresh()]);
    let (matrix_pointer, float_pointer, variable) = (ids.pointer(matrix), ids.pointer(ids.float), ids.fresh());
    push(&mut out, VARIABLE, &[matrix_pointer, variable, STORAGE_FUNCTION]);
    push(&mut out, STORE, &[variable, parameter]);
    let mut elements = Vec::new();
    for index in ids.indices.clone() {
        let (place, element) = (ids.fresh(), ids.fresh());
        push(&mut out, ACCESS_CHAIN, &[float_pointer, place, variable, index]);
        push(&mut out, LOAD, &[ids.float, element, place]);
        elements.push(element);
    }
    let (low, high, both) = (ids.fresh(), ids.fresh(), ids.fresh());
    for (id, four) in [low, high].into_iter().zip(elements.chunks(4)) {
        push(&mut out, COMPOSITE_CONSTRUCT, &[&[quad, id], four].concat());
    }
    push(&mut out, COMPOSITE_CONSTRUCT, &[result, both, low, high]);
    push(&mut out, RETURN_VALUE, &[both]);
    out
}

/// A matrix from such a struct, its elements converted to the type `half` if given.
fn fragment_of(ids: &mut Ids, matrix: u32, half: Option<u32>, parameter: u32) -> Vec<u32> {
    let mut out = Vec::new();
    push(&mut out, LABEL, &[ids.fresh()]);
    let (matrix_pointer, variable) = (ids.pointer(matrix), ids.fresh());
    let element_pointer = ids.pointer(half.unwrap_or(ids.float));
    push(&mut out, VARIABLE, &[matrix_pointer, variable, STORAGE_FUNCTION]);
    for (i, index) in (0..).zip(ids.indices.clone()) {
        let (mut element, place) = (ids.fresh(), ids.fresh());
        push(&mut out, COMPOSITE_EXTRACT, &[ids.float, element, parameter, i / 4, i % 4]);
        if let Some(half) = half {
            let converted = ids.fresh();
            push(&mut out, F_CONVERT, &[half, converted, element]);
            element = converted;
        }
        push(&mut out, ACCESS_CHAIN, &[element_pointer, place, variable, index]);
        push(&mut out, STORE, &[place, element]);
    }
    let id = ids.fresh();
    push(&mut out, LOAD, &[matrix, id, variable]);
    push(&mut out, RETURN_VALUE, &[id]);
    out
}

/// A matrix of f16 from a vector of four words that hold two elements each.
fn words_of(ids: &mut Ids, matrix: u32, [uint, half, pair]: [u32; 3], parameter: u32) -> Vec<u32> {
    let mut out = Vec::new();
    push(&mut out, LABEL, &[ids.fresh()]);
    let (matrix_pointer, element_pointer, variable) = (ids.pointer(matrix), ids.pointer(half), ids.fresh());
    push(&mut out, VARIABLE, &[matrix_pointer, variable, STORAGE_FUNCTION]);
    for (word, indices) in (0..).zip(ids.indices.clone().chunks(2)) {
        let (bits, both) = (ids.fresh(), ids.fresh());
        push(&mut out, COMPOSITE_EXTRACT, &[uint, bits, parameter, word]);
        push(&mut out, BITCAST, &[pair, both, bits]);
        for (i, index) in (0..).zip(indices) {
            let (element, place) = (ids.fresh(), ids.fresh());
            push(&mut out, COMPOSITE_EXTRACT, &[half, element, both, i]);
            push(&mut out, ACCESS_CHAIN, &[element_pointer, place, variable, *index]);
            push(&mut out, STORE, &[place, element]);
        }
    }
    let id = ids.fresh();
    push(&mut out, LOAD, &[matrix, id, variable]);
    push(&mut out, RETURN_VALUE, &[id]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::wgpu::attention_rows::layout;
    use crate::backend::wgpu::{Tier, Traits};

    #[test]
    fn bodies_are_put_in_and_ids_stay_below_the_bound() {
        let (_, traits) = Traits::KNOWN.iter().find(|(_, traits)| traits.tier == Tier::Coop16).unwrap();
        let words = layout(traits).module().unwrap().spirv().unwrap();
        let all = instructions(&words).unwrap();
        let named = |name: &str| all.iter().find(|i| i.code() == NAME && text(&i.words[2..]) == name).unwrap().words[1];
        for (name, loads, stores) in [("elements_of", 8, 1), ("operand_of", 1, 8), ("right_of", 1, 8)] {
            let first = all.iter().position(|i| i.code() == FUNCTION && i.words[2] == named(name)).unwrap();
            let end = all[first..].iter().position(|i| i.code() == FUNCTION_END).unwrap();
            let count = |code| all[first..first + end].iter().filter(|i| i.code() == code).count();
            assert_eq!((count(LOAD), count(STORE), count(ACCESS_CHAIN)), (loads, stores, 8), "{name}");
        }
        let variables = all.iter().filter(|i| i.code() == VARIABLE).map(|i| i.words[2]);
        assert!(variables.max().unwrap() < words[3]);
    }
}
