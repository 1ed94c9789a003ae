//! Element by element operations on cooperative matrices, which SPIR-V has and WGSL has not.
//!
//! `shaders/shared/coop_elements.wgsl` declares them as functions with empty bodies. naga writes the module as SPIR-V,
//! and [`splice`] puts the real bodies in, found by name: a conversion (`OpFConvert`), and loops over the elements that a
//! lane holds (`OpAccessChain` into a matrix), unrolled. Which elements those are is the driver's affair; these operations
//! do not ask.
//!
//! That takes scores through an exponential and into f16 without a way through workgroup memory as f32: 8 of the 12 bytes
//! a score costs there.

use crate::{Error, Result};
use std::collections::HashMap;

// Instructions of SPIR-V 1.x, section 3.52, and of GLSL.std.450.
const EXT_INST_IMPORT: u32 = 11;
const EXT_INST: u32 = 12;
const MEMORY_MODEL: u32 = 14;
const NAME: u32 = 5;
const TYPE_INT: u32 = 21;
const TYPE_FLOAT: u32 = 22;
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
const LABEL: u32 = 248;
const TYPE_COOPERATIVE_MATRIX: u32 = 4456;
const COOPERATIVE_MATRIX_LOAD: u32 = 4457;
const RETURN_VALUE: u32 = 254;
const EXP2: u32 = 29;
const F_MAX: u32 = 40;
const STORAGE_FUNCTION: u32 = 7;

/// Words before the first instruction; the fourth is the bound of ids.
const HEADER: usize = 5;

/// What a body does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Exp2,
    Max,
    F16,
    ElementsOf,
    AccumulatorOf,
    OperandOf,
}

const FUNCTIONS: [(&str, Operation); 6] = [
    ("fragment_exp2", Operation::Exp2),
    ("fragment_max", Operation::Max),
    ("fragment_f16", Operation::F16),
    ("elements_of", Operation::ElementsOf),
    ("accumulator_of", Operation::AccumulatorOf),
    ("operand_of", Operation::OperandOf),
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
    extended: u32,
    indices: Vec<u32>,
}

impl Ids {
    fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
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

/// Puts the bodies of `shared/coop_elements.wgsl` into a module that naga wrote with names; a lane holds `elements` of a
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
        return Err(missing("function of coop_elements.wgsl or coop_rows.wgsl"));
    }

    let uint = find(TYPE_INT, &|w| w[2..] == [32, 0]).ok_or_else(|| missing("type u32"))?;
    let float = find(TYPE_FLOAT, &|w| w[2] == 32).ok_or_else(|| missing("type f32"))?;
    let mut ids =
        Ids { next: words[3], declared: vec![], pointers: HashMap::new(), float, extended: 0, indices: vec![] };
    let mut imports = Vec::new();
    ids.extended = match find(EXT_INST_IMPORT, &|w| text(&w[2..]) == "GLSL.std.450") {
        Some(id) => id,
        None => {
            let id = ids.fresh();
            // "GLSL.std.450" and its zero, four bytes a word.
            push(&mut imports, EXT_INST_IMPORT, &[id, 0x4c53_4c47, 0x6474_732e, 0x3035_342e, 0]);
            id
        }
    };
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
    for (i, instruction) in all.iter().enumerate().filter(|(_, i)| i.code() == FUNCTION) {
        let Some((_, operation)) = functions.iter().find(|(id, _)| *id == instruction.words[2]) else { continue };
        let parameter = all.get(i + 1).filter(|p| p.code() == FUNCTION_PARAMETER);
        let parameter = parameter.ok_or_else(|| missing("parameter of a function of coop_elements.wgsl"))?;
        let end = all[i..].iter().find(|j| j.code() == FUNCTION_END).ok_or_else(|| missing("end of a function"))?;
        let (result, given) = (instruction.words[1], [parameter.words[1], parameter.words[2]]);
        let body = match operation {
            Operation::Exp2 | Operation::Max | Operation::F16 => body(&mut ids, *operation, result, given[0], given[1]),
            Operation::ElementsOf => {
                let quad = find_struct(result).ok_or_else(|| missing("struct of elements"))?;
                elements_of(&mut ids, result, quad, given)
            }
            Operation::AccumulatorOf => fragment_of(&mut ids, result, None, given[1]),
            Operation::OperandOf => {
                let half = find(TYPE_FLOAT, &|w| w[2] == 16).ok_or_else(|| missing("type f16"))?;
                fragment_of(&mut ids, result, Some(half), given[1])
            }
        };
        bodies.push((parameter.at + parameter.words.len(), end.at, body));
    }
    let first_function = all.iter().find(|i| i.code() == FUNCTION).map_or(words.len(), |i| i.at);
    // Imports stand before the memory model.
    let model = all.iter().find(|i| i.code() == MEMORY_MODEL).ok_or_else(|| missing("memory model"))?;
    let mut out = words[..model.at].to_vec();
    out.extend(imports);
    out.extend(&words[model.at..first_function]);
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

/// The blocks of one function: `parameter` of type `matrix` in, `result` out.
fn body(ids: &mut Ids, operation: Operation, result: u32, matrix: u32, parameter: u32) -> Vec<u32> {
    let mut out = Vec::new();
    push(&mut out, LABEL, &[ids.fresh()]);
    if operation == Operation::F16 {
        let converted = ids.fresh();
        push(&mut out, F_CONVERT, &[result, converted, parameter]);
        push(&mut out, RETURN_VALUE, &[converted]);
        return out;
    }
    let (matrix_pointer, float_pointer) = (ids.pointer(matrix), ids.pointer(ids.float));
    let variable = ids.fresh();
    push(&mut out, VARIABLE, &[matrix_pointer, variable, STORAGE_FUNCTION]);
    push(&mut out, STORE, &[variable, parameter]);
    let mut largest = None;
    for index in ids.indices.clone() {
        let (place, element) = (ids.fresh(), ids.fresh());
        push(&mut out, ACCESS_CHAIN, &[float_pointer, place, variable, index]);
        push(&mut out, LOAD, &[ids.float, element, place]);
        let combined = match (operation, largest) {
            (Operation::Max, None) => element,
            (Operation::Max, Some(before)) => {
                let id = ids.fresh();
                push(&mut out, EXT_INST, &[ids.float, id, ids.extended, F_MAX, before, element]);
                id
            }
            _ => {
                let id = ids.fresh();
                push(&mut out, EXT_INST, &[ids.float, id, ids.extended, EXP2, element]);
                push(&mut out, STORE, &[place, id]);
                id
            }
        };
        largest = Some(combined);
    }
    let returned = match (operation, largest) {
        (Operation::Max, Some(largest)) => largest,
        _ => {
            let id = ids.fresh();
            push(&mut out, LOAD, &[matrix, id, variable]);
            id
        }
    };
    push(&mut out, RETURN_VALUE, &[returned]);
    out
}
