//! JSON to protobuf in the order of Go's encoder: fields by their numbers, zero values where it writes them.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;

use super::{
    super::{
        Field, Schema, Shape, Struct,
        codec::SCHEMA_PROPS,
        tape::{Json, Tape},
    },
    as_struct,
};
use crate::meta::{Result, Status};

/// The bare message of an object, without the envelope.
pub fn message(json: &[u8], schema: &Schema) -> Result<Vec<u8>> {
    let tape = Tape::read(json)?;
    let mut writer = Writer { out: Vec::with_capacity(json.len()), values: Vec::new() };
    writer.object(Some(tape.root()), as_struct(schema)?)?;
    Ok(writer.out)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_int(out: &mut Vec<u8>, number: u32, value: i64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value as u64);
}

pub fn put_number(out: &mut Vec<u8>, number: u32, value: f64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend(value.to_le_bytes());
}

pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

struct Writer<'a> {
    out: Vec<u8>,
    /// The values of the fields of all objects that are being written, those of the innermost last.
    values: Vec<Option<Json<'a>>>,
}

impl<'a> Writer<'a> {
    fn int(&mut self, number: u32, value: i64) {
        put_int(&mut self.out, number, value);
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        put_bytes(&mut self.out, number, bytes);
    }

    /// A message in a message. A short one has room for its length in front; a longer one is moved.
    fn message(&mut self, number: u32, write: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        put_varint(&mut self.out, u64::from(number) << 3 | 2);
        let start = self.out.len();
        self.out.push(0);
        write(self)?;
        let length = self.out.len() - start - 1;
        match u8::try_from(length) {
            Ok(short @ 0..128) => self.out[start] = short,
            _ => {
                let mut prefix = Vec::with_capacity(5);
                put_varint(&mut prefix, length as u64);
                self.out.splice(start..=start, prefix);
            }
        }
        Ok(())
    }

    /// The fields of an object, or of one that was never set.
    fn object(&mut self, json: Option<Json<'a>>, shape: &Struct) -> Result<()> {
        let first = self.values.len();
        self.values.resize(first + shape.fields.len(), None);
        for (name, value) in json.into_iter().flat_map(Json::members).filter(|(_, value)| !value.is_null()) {
            if let Some(place) = shape.by_name.get(&*name) {
                self.values[first + place] = Some(value);
            }
        }
        self.fields(&shape.fields, first, 0)?;
        self.values.truncate(first);
        Ok(())
    }

    /// Writes `fields` at `depth` of inlining, whose values begin at `first`: those of one inlined struct stand together and become one message.
    fn fields(&mut self, fields: &[Field], mut first: usize, depth: usize) -> Result<()> {
        for run in fields.chunk_by(|left, right| left.within.get(depth).is_some() && left.within.get(depth) == right.within.get(depth)) {
            match run[0].within.get(depth) {
                Some(number) => self.message(*number, |it| it.fields(run, first, depth + 1))?,
                None => self.field(&run[0], first)?,
            }
            first += run.len();
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, place: usize) -> Result<()> {
        let Some(value) = self.values[place] else { return self.zero(field) };
        match &field.schema.shape {
            Shape::List { items, .. } if value.is_array() => value.items().try_for_each(|item| self.value(field.number, item, items)),
            Shape::Map { values, .. } if value.is_object() => value.members().try_for_each(|(key, value)| {
                self.message(field.number, |it| {
                    it.bytes(1, key.as_bytes());
                    it.entry(value, values)
                })
            }),
            _ => self.value(field.number, value, &field.schema),
        }
    }

    /// What Go's encoder writes of a field that is no pointer and was never set.
    fn zero(&mut self, field: &Field) -> Result<()> {
        if field.is_pointer {
            return Ok(());
        }
        match &field.schema.shape {
            Shape::Bool | Shape::Int32 | Shape::Int64 => self.int(field.number, 0),
            Shape::String | Shape::Time | Shape::MicroTime => self.bytes(field.number, &[]),
            Shape::Quantity => self.triple(field.number, &[], Some((1, b"0"))),
            Shape::IntOrString => self.triple(field.number, &[0, 0], Some((3, b""))),
            Shape::Object(shape) => self.message(field.number, |it| it.object(None, shape))?,
            _ => (),
        }
        Ok(())
    }

    /// The value of an entry of a map: a list is a message of its own.
    fn entry(&mut self, value: Json<'a>, values: &Schema) -> Result<()> {
        match &values.shape {
            Shape::List { items, .. } => self.message(2, |it| value.items().try_for_each(|item| it.value(1, item, items))),
            _ => self.value(2, value, values),
        }
    }

    fn value(&mut self, number: u32, value: Json<'a>, schema: &Schema) -> Result<()> {
        let wrong = || Status::internal(format!("{} cannot be encoded: {}", schema.name, value.text()));
        let text = || value.as_str().ok_or_else(wrong);
        match &schema.shape {
            _ if value.is_null() => self.bytes(number, b""),
            Shape::String => self.bytes(number, text()?.as_bytes()),
            Shape::Bool => self.int(number, value.parse::<bool>().ok_or_else(wrong)?.into()),
            Shape::Int32 | Shape::Int64 => self.int(number, value.parse().ok_or_else(wrong)?),
            Shape::Float => put_number(&mut self.out, number, value.parse().ok_or_else(wrong)?),
            Shape::Bytes => self.bytes(number, &BASE64.decode(text()?.as_bytes()).map_err(|_| wrong())?),
            Shape::Time | Shape::MicroTime => {
                let at: Timestamp = text()?.parse().map_err(|_| wrong())?;
                self.triple(number, &[at.as_second(), i64::from(at.subsec_nanosecond())], None);
            }
            Shape::Duration => self.triple(number, &[text()?.trim_end_matches("ns").parse().map_err(|_| wrong())?], None),
            Shape::Quantity => self.triple(number, &[], Some((1, value.as_str().unwrap_or(value.text().into()).as_bytes()))),
            Shape::IntOrString => match value.parse() {
                Some(int) => self.triple(number, &[0, int], Some((3, b""))),
                None => self.triple(number, &[1, 0], Some((3, text()?.as_bytes()))),
            },
            Shape::Any => self.triple(number, &[], Some((1, value.text().as_bytes()))),
            Shape::Object(shape) if value.is_object() => self.message(number, |it| it.object(Some(value), shape))?,
            Shape::SchemaOrArray | Shape::SchemaOrBool | Shape::SchemaOrStrings => self.schema_union(number, value, &schema.shape)?,
            Shape::Object(_) | Shape::List { .. } | Shape::Map { .. } => return Err(wrong()),
        }
        Ok(())
    }

    /// The small messages of times, quantities and the like: integers from one on, then some bytes.
    fn triple(&mut self, number: u32, ints: &[i64], bytes: Option<(u32, &[u8])>) {
        let mut inner = Vec::with_capacity(32);
        for (at, int) in (1..).zip(ints) {
            put_int(&mut inner, at, *int);
        }
        if let Some((at, bytes)) = bytes {
            put_bytes(&mut inner, at, bytes);
        }
        self.bytes(number, &inner);
    }

    fn schema_union(&mut self, number: u32, value: Json<'a>, shape: &Shape) -> Result<()> {
        let is_bool = matches!(shape, Shape::SchemaOrBool);
        self.message(number, |it| {
            if let Some(allows) = value.parse::<bool>() {
                it.int(1, i64::from(allows));
                return Ok(());
            }
            if value.is_array() {
                return value.items().try_for_each(|item| match item.as_str() {
                    Some(text) => {
                        it.bytes(2, text.as_bytes());
                        Ok(())
                    }
                    None => it.value(2, item, &SCHEMA_PROPS),
                });
            }
            if is_bool {
                it.int(1, 1);
            }
            it.value(if is_bool { 2 } else { 1 }, value, &SCHEMA_PROPS)
        })
    }
}
