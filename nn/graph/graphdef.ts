/** Just enough of TensorFlow's protobufs (node_def, attr_value, tensor, saved_model .proto) to write a SavedModel. */
import protobuf from 'protobufjs';

/** What an attribute can hold. Typed explicitly: 1 may be an int, a float or a DataType. */
export type AttrValue =
  | { s: string }
  | { i: number }
  | { f: number }
  | { b: boolean }
  | { type: number }
  | { shape: number[] }
  | { tensor: ConstValue }
  | { list: { i: number[] } | { f: number[] } | { s: string[] } | { type: number[] } | { shape: number[][] } };

export interface ConstValue {
  dtype: number;
  shape: number[];
  /** Raw little-endian elements. */
  bytes: Uint8Array;
}

export interface NodeDef {
  name: string;
  op: string;
  /** 'node', 'node:1', or '^node' for a control input. */
  inputs: string[];
  attrs: Record<string, AttrValue>;
  /** Where it must run; absent: where TensorFlow likes. */
  device?: typeof HOST;
}

/** The CPU, whether there is a GPU or not. */
export const HOST = '/device:CPU:0';

const PRODUCER_VERSION = 1087; // the GraphDef version of TensorFlow 2.9, whose operations tfjs-node 4.22 speaks
const LENGTH_DELIMITED = 2;

const tag = (field: number, wireType = LENGTH_DELIMITED) => (field << 3) | wireType;

/** A SavedModel with one graph under the tag 'serve', without signatures: Braid runs by node name. */
export function encodeSavedModel(nodes: NodeDef[]): Uint8Array {
  const w = protobuf.Writer.create();
  w.uint32(tag(1, 0)).int64(1); // saved_model_schema_version
  w.uint32(tag(2)).fork(); // meta_graphs
  w.uint32(tag(1)).fork().uint32(tag(4)).string('serve').ldelim(); // meta_info_def.tags
  w.uint32(tag(2)).fork(); // graph_def
  for (const node of nodes) {
    w.uint32(tag(1)).fork();
    w.uint32(tag(1)).string(node.name);
    w.uint32(tag(2)).string(node.op);
    for (const input of node.inputs) w.uint32(tag(3)).string(input);
    if (node.device !== undefined) w.uint32(tag(4)).string(node.device);
    for (const [name, value] of Object.entries(node.attrs)) {
      w.uint32(tag(5)).fork().uint32(tag(1)).string(name).uint32(tag(2)).fork();
      writeAttr(w, value);
      w.ldelim().ldelim();
    }
    w.ldelim();
  }
  w.uint32(tag(4)).fork().uint32(tag(1, 0)).int32(PRODUCER_VERSION).ldelim(); // versions
  w.ldelim().ldelim();
  return w.finish();
}

function writeAttr(w: protobuf.Writer, value: AttrValue): void {
  if ('s' in value) w.uint32(tag(2)).string(value.s);
  else if ('i' in value) w.uint32(tag(3, 0)).int64(value.i);
  else if ('f' in value) w.uint32(tag(4, 5)).float(value.f);
  else if ('b' in value) w.uint32(tag(5, 0)).bool(value.b);
  else if ('type' in value) w.uint32(tag(6, 0)).int32(value.type);
  else if ('shape' in value) writeShape(w.uint32(tag(7)), value.shape);
  else if ('tensor' in value) {
    w.uint32(tag(8)).fork().uint32(tag(1, 0)).int32(value.tensor.dtype);
    writeShape(w.uint32(tag(2)), value.tensor.shape);
    w.uint32(tag(4)).bytes(value.tensor.bytes).ldelim();
  } else {
    const { list } = value;
    w.uint32(tag(1)).fork();
    if ('s' in list) for (const s of list.s) w.uint32(tag(2)).string(s);
    if ('i' in list) for (const i of list.i) w.uint32(tag(3, 0)).int64(i);
    if ('f' in list) for (const f of list.f) w.uint32(tag(4, 5)).float(f);
    if ('type' in list) for (const type of list.type) w.uint32(tag(6, 0)).int32(type);
    if ('shape' in list) for (const shape of list.shape) writeShape(w.uint32(tag(7)), shape);
    w.ldelim();
  }
}

function writeShape(w: protobuf.Writer, shape: number[]): void {
  w.fork();
  for (const size of shape) w.uint32(tag(2)).fork().uint32(tag(1, 0)).int64(size).ldelim();
  w.ldelim();
}
