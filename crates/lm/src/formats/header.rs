//! The parser of the JSON header of a safetensors file: one pass, keeping only the known fields.

use super::dtype::StoredDtype;
use alluvium_core::Shape;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// Axes that are kept of a shape: more than a tensor may have.
const AXES: usize = 16;

/// The header's entry of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The lengths of the axes.
    pub shape: Shape,
    /// The stored dtype.
    pub dtype: StoredDtype,
    /// Its size in the file.
    pub bytes: usize,
    pub(super) start: u64,
}

/// Why a header cannot be used.
#[derive(Debug)]
pub(super) enum Fault {
    /// The file is not whole, or was never a safetensors file.
    Damaged(String),
    /// The file may be whole, but has what is not known here.
    Foreign(String),
}

impl<S: Into<String>> From<S> for Fault {
    fn from(why: S) -> Self {
        Fault::Damaged(why.into())
    }
}

/// A parsed header.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// Parses a header. Data begin at byte `data` of a file of `end` bytes.
///
/// # Errors
/// In words: when it is not a JSON object, has a name twice, or a tensor is not inside the file.
pub(super) fn parse(json: &[u8], data: u64, end: u64) -> Result<Header, Fault> {
    let mut parser = Parser { data, end, header: Header::default(), has_metadata: false, fault: None };
    let mut reader = serde_json::Deserializer::from_slice(json);
    let parsed = (&mut parser).deserialize(&mut reader).and_then(|()| reader.end());
    if let Some(fault) = parser.fault {
        return Err(fault);
    }
    parsed.map_err(|error| format!("its header is no JSON object: {error}"))?;
    places(&parser.header.entries, data, end)?;
    Ok(parser.header)
}

/// Checks that the tensors follow each other without gaps.
fn places(entries: &BTreeMap<String, Entry>, data: u64, end: u64) -> Result<(), String> {
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    // empty tensors first where several begin at the same place
    order.sort_by_key(|(_, e)| (e.start, e.bytes));
    let mut free = data;
    for (name, entry) in order {
        if entry.start < free {
            return Err(format!("tensor `{name}` begins inside another one"));
        }
        if entry.start > free {
            return Err(format!("the {} bytes before tensor `{name}` belong to no tensor", entry.start - free));
        }
        free = entry.start + entry.bytes as u64;
    }
    if free != end {
        return Err(format!("the last {} bytes belong to no tensor", end - free));
    }
    Ok(())
}

struct Parser {
    data: u64,
    end: u64,
    header: Header,
    has_metadata: bool,
    /// A fault in the contents of valid JSON.
    fault: Option<Fault>,
}

impl<'de> DeserializeSeed<'de> for &mut Parser {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Parser {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let added = if name == "__metadata__" {
                let metadata = map.next_value_seed(Metadata)?;
                self.set_metadata(metadata).map_err(Fault::Damaged)
            } else {
                let fields = map.next_value_seed(Any::<Fields>::default())?;
                self.add(name, fields)
            };
            added.map_err(|fault| {
                self.fault.get_or_insert(fault);
                A::Error::custom("")
            })?;
        }
        Ok(())
    }
}

impl Parser {
    fn set_metadata(&mut self, metadata: Result<BTreeMap<String, String>, String>) -> Result<(), String> {
        if std::mem::replace(&mut self.has_metadata, true) {
            return Err("`__metadata__` is there twice".to_owned());
        }
        self.header.metadata = metadata?;
        Ok(())
    }

    fn add(&mut self, name: String, fields: Fields) -> Result<(), Fault> {
        if self.header.entries.contains_key(&name) {
            return Err(Fault::Damaged(format!("tensor `{name}` is there twice")));
        }
        let entry = fields.entry(self.data, self.end).map_err(|fault| match fault {
            Fault::Damaged(why) => Fault::Damaged(format!("tensor `{name}`: {why}")),
            Fault::Foreign(why) => Fault::Foreign(format!("tensor `{name}`: {why}")),
        })?;
        self.header.entries.insert(name, entry);
        Ok(())
    }
}

/// The object `__metadata__`: strings by name. Numbers and booleans are taken as text.
struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = Result<BTreeMap<String, String>, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = Result<BTreeMap<String, String>, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings as `__metadata__`")
    }

    /// mlx writes null where there is no metadata.
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Ok(BTreeMap::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut all, mut fault) = (BTreeMap::new(), None);
        while let Some(key) = map.next_key::<String>()? {
            let Scalar(text) = map.next_value_seed(Any::<Scalar>::default())?;
            match text {
                Some(_) if all.contains_key(&key) => {
                    fault.get_or_insert(format!("`{key}` of its __metadata__ is there twice"));
                }
                Some(text) => drop(all.insert(key, text)),
                None => drop(fault.get_or_insert(format!("`{key}` of its __metadata__ is no string"))),
            }
        }
        Ok(fault.map_or(Ok(all), Err))
    }
}

/// Visits a JSON value of any type and keeps what `T` has a field for.
#[derive(Default)]
struct Any<T>(T);

trait Keep: Default {
    fn text(&mut self, _: &str) {}
    fn integer(&mut self, _: u64) {}
    fn scalar(&mut self, _: &dyn fmt::Display) {}
    fn items<'de, A: SeqAccess<'de>>(&mut self, mut items: A) -> Result<(), A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn entries<'de, A: MapAccess<'de>>(&mut self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

impl<'de, T: Keep> DeserializeSeed<'de> for Any<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Keep> Visitor<'de> for Any<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(mut self, text: &str) -> Result<T, E> {
        self.0.text(text);
        Ok(self.0)
    }

    fn visit_u64<E>(mut self, n: u64) -> Result<T, E> {
        self.0.integer(n);
        self.0.scalar(&n);
        Ok(self.0)
    }

    fn visit_i64<E>(mut self, n: i64) -> Result<T, E> {
        self.0.scalar(&n);
        Ok(self.0)
    }

    fn visit_f64<E>(mut self, x: f64) -> Result<T, E> {
        self.0.scalar(&x);
        Ok(self.0)
    }

    fn visit_bool<E>(mut self, b: bool) -> Result<T, E> {
        self.0.scalar(&b);
        Ok(self.0)
    }

    fn visit_unit<E>(mut self) -> Result<T, E> {
        self.0.scalar(&"null");
        Ok(self.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, items: A) -> Result<T, A::Error> {
        self.0.items(items)?;
        Ok(self.0)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<T, A::Error> {
        self.0.entries(map)?;
        Ok(self.0)
    }
}

#[derive(Default)]
struct Scalar(Option<String>);

impl Keep for Scalar {
    fn text(&mut self, text: &str) {
        self.0 = Some(text.to_owned());
    }

    fn scalar(&mut self, value: &dyn fmt::Display) {
        self.0 = Some(value.to_string());
    }
}

#[derive(Default)]
struct Integer(Option<u64>);

impl Keep for Integer {
    fn integer(&mut self, n: u64) {
        self.0 = Some(n);
    }
}

/// A list of lengths; none where an item is none.
#[derive(Default)]
struct Integers(Option<Vec<u64>>);

impl Keep for Integers {
    fn items<'de, A: SeqAccess<'de>>(&mut self, mut items: A) -> Result<(), A::Error> {
        let mut all = Some(Vec::new());
        while let Some(Integer(item)) = items.next_element_seed(Any::<Integer>::default())? {
            match (&mut all, item) {
                (Some(all), Some(item)) if all.len() <= AXES => all.push(item),
                (Some(_), Some(_)) => {}
                _ => all = None,
            }
        }
        self.0 = all;
        Ok(())
    }
}

/// The fields of a tensor that are known.
#[derive(Default)]
struct Fields {
    dtype: Option<String>,
    shape: Option<Option<Vec<u64>>>,
    offsets: Option<Option<Vec<u64>>>,
    twice: Option<&'static str>,
}

impl Keep for Fields {
    fn entries<'de, A: MapAccess<'de>>(&mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "dtype" => {
                    let Scalar(dtype) = map.next_value_seed(Any::default())?;
                    self.twice = self.twice.or(self.dtype.is_some().then_some("dtype"));
                    self.dtype = dtype;
                }
                "shape" => {
                    let Integers(shape) = map.next_value_seed(Any::default())?;
                    self.twice = self.twice.or(self.shape.is_some().then_some("shape"));
                    self.shape = Some(shape);
                }
                "data_offsets" => {
                    let Integers(offsets) = map.next_value_seed(Any::default())?;
                    self.twice = self.twice.or(self.offsets.is_some().then_some("data_offsets"));
                    self.offsets = Some(offsets);
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

impl Fields {
    fn entry(self, data: u64, end: u64) -> Result<Entry, Fault> {
        if let Some(key) = self.twice {
            return Err(Fault::Damaged(format!("its {key} is there twice")));
        }
        let dtype = self.dtype.ok_or("its dtype is missing")?;
        let dtype = StoredDtype::from_name(&dtype).ok_or_else(|| {
            let advice = "convert the checkpoint to bf16, f16 or f32";
            Fault::Foreign(format!("its dtype `{dtype:.20}` is not known; {advice}"))
        })?;
        let axes = self.shape.ok_or("its shape is missing")?.ok_or("its shape is no list of lengths")?;
        let axes: Option<Vec<usize>> = axes.into_iter().map(|axis| usize::try_from(axis).ok()).collect();
        let shape = Shape::new(&axes.ok_or("its shape is no list of lengths")?).map_err(|e| e.to_string())?;
        let offsets = self.offsets.flatten().ok_or("its data_offsets are missing")?;
        let &[from, to] = offsets.as_slice() else { return Err("its data_offsets are no pair".into()) };
        if from > to || to > end - data {
            return Err(format!("its bytes {from} to {to} are not in the file's {}", end - data).into());
        }
        let bytes = shape.elements().checked_mul(dtype.size()).ok_or("it has more bytes than memory can have")?;
        if to - from != bytes as u64 {
            return Err(format!("{shape} of {dtype} takes {bytes} bytes, {} are given", to - from).into());
        }
        Ok(Entry { shape, dtype, bytes, start: data + from })
    }
}
