/**
 * Captures tfjs code as a TensorFlow graph of named phases, each of which one session run executes.
 *
 *     const { graph } = capture((c) => {
 *       const w = c.variable('w', [2, 2]);
 *       c.phase('forward', () => {
 *         const x = c.feed('x', [1, 2]);
 *         return { y: tf.matMul(x, w.read()) };
 *       });
 *     });
 *
 * The code between is ordinary: models, losses, and tfjs's own autodiff.
 */
import { asBraidError, BraidError } from '../../core/errors.ts';
import { ALIGNED_ELEMENTS } from '../../core/shared-buffer.ts';
import { DType, EAGER_BACKEND, eagerBackend, type NodeBackend, type Tensor, tf } from '../tensorflow.ts';
import { type AttrValue, encodeSavedModel, HOST, type NodeDef } from './graphdef.ts';
import { type Edge, Recorder, shownType, variableAttrs } from './recorder.ts';

const CAPTURE_BACKEND = 'braid-capture';

/** What a fetch is called in the graph when the phase has updates: reading it makes them all happen. */
const UPDATES = 'updates';

export interface FeedSpec {
  name: string;
  /** The placeholder's node. */
  node: string;
  shape: number[];
  dtype: typeof DType.FLOAT | typeof DType.INT32;
  /** Bytes are fed as i32 words, which every device takes; this is how many bytes. */
  bytes?: number;
}

export interface PhaseSpec {
  feeds: FeedSpec[];
  fetches: { name: string; node: string; shape: number[] }[];
  /** Results that the graph writes where the caller wants them; fed as i32 words, which every device leaves in their place. */
  written: { name: string; node: string; length: number }[];
  /** Whether a node must be fetched for the phase's updates to happen. */
  updates: string | null;
}

export interface Graph {
  /** A serialised SavedModel. */
  model: Uint8Array;
  phases: Record<string, PhaseSpec>;
  nodes: readonly NodeDef[];
  /** Of results, by the name of their edge. */
  bytes: ReadonlyMap<string, number>;
  /** Of every node but constants and variables. */
  phaseOf: ReadonlyMap<string, string>;
}

/** A variable of the graph: it lives on the device, in a session. */
export interface Variable {
  readonly name: string;
  readonly shape: number[];
  /** Its value, at the beginning of whichever phase uses the tensor. */
  read(): Tensor;
  /** From the end of the current phase on it holds this value. */
  assign(value: Tensor): void;
  /** Adds to what it holds, in place. */
  add(value: Tensor): void;
  /**
   * w -= lr * momentum step, in place: TensorFlow's ResourceApplyMomentum, which equals PyTorch's SGD.
   * @returns the new value
   */
  applyMomentum(
    accumulator: Variable,
    learningRate: Tensor,
    gradient: Tensor,
    momentum: number,
    nesterov: boolean,
  ): Tensor;
}

export interface WrittenPart {
  /** f32 elements into the result. */
  offset: number;
  value: Tensor;
}

export interface Capture {
  /** Feeds and fetches made inside belong to the phase. */
  phase(name: string, body: () => Record<string, Tensor>): void;
  /** From here on, what is recorded belongs to another phase; feeds too. For code that runs as one, such as autodiff. */
  continueIn(name: string): void;
  /** Fetches of a phase that `continueIn` began. */
  fetch(name: string, tensor: Tensor): void;
  /**
   * A result f32[length] of the current phase that is written, part by part as they are there, into the memory of whoever
   * runs it: unlike a fetch, never copied. Where a part begins and how long it is are multiples of ALIGNED_ELEMENTS.
   */
  write(name: string, length: number, parts: WrittenPart[]): void;
  feed(name: string, shape: number[], dtype?: 'float32' | 'int32'): Tensor;
  /** u8 values as f32[shape]. */
  feedBytes(name: string, shape: number[]): Tensor;
  variable(name: string, shape: number[]): Variable;
}

let recorder: Recorder | null = null;

/** @throws BraidError CAPTURE naming the layer, for an operation or a shape that cannot be recorded */
export function capture(body: (c: Capture) => void): Graph {
  if (recorder !== null) throw new BraidError('CAPTURE', 'a capture is already under way in this thread');
  const backend = captureBackend();
  recorder = new Recorder();
  backend.binding = recorder.binding;
  const before = tf.getBackend();
  void tf.setBackend(CAPTURE_BACKEND); // registered without a promise: it takes effect at once
  tf.engine().startScope();
  try {
    return record(recorder, backend, body);
  } finally {
    tf.engine().endScope();
    void tf.setBackend(before);
    recorder = null;
  }
}

/** Names the part of a model that `body` builds, for node names and for errors. Outside of a capture it only runs. */
export function layer<T>(name: string, body: () => T): T {
  if (recorder === null) return body();
  const current = recorder;
  current.layers.push(name);
  try {
    return body();
  } catch (thrown) {
    // tfjs refuses impossible shapes itself, and does not know the layer.
    if (thrown instanceof BraidError) throw thrown;
    throw current.error((thrown as Error).message, { cause: thrown });
  } finally {
    current.layers.pop();
  }
}

function record(r: Recorder, backend: NodeBackend, body: (c: Capture) => void): Graph {
  const phases: Record<string, PhaseSpec> = {};
  const phaseOf = (name: string): PhaseSpec => {
    phases[name] ??= { feeds: [], fetches: [], written: [], updates: null };
    return phases[name];
  };
  const tensorOf = (edge: Edge): Tensor =>
    backend.createOutputTensor({
      id: r.register(edge),
      shape: edge.shape,
      dtype: shownType(edge.dtype),
    });
  const edgeOf = (tensor: Tensor): Edge => r.edge(backend.getInputTensorIds([tensor])[0]!);

  const placeholder = (name: string, shape: number[], dtype: FeedSpec['dtype'], bytes?: number): Tensor => {
    const node = r.uniqueName(`${r.phase}/feed/${name}`);
    r.nodes.push({ name: node, op: 'Placeholder', inputs: [], attrs: { dtype: { type: dtype }, shape: { shape } } });
    phaseOf(r.phase).feeds.push({ name, node, shape, dtype, ...(bytes === undefined ? {} : { bytes }) });
    return tensorOf({ name: node, shape, dtype, phase: r.phase });
  };

  const c: Capture = {
    phase(name, inner) {
      r.phase = name;
      phaseOf(name);
      for (const [key, tensor] of Object.entries(inner())) c.fetch(key, tensor);
    },
    continueIn(name) {
      r.phase = name;
      phaseOf(name);
    },
    fetch(name, tensor) {
      const edge = edgeOf(tensor);
      if (edge.dtype !== DType.FLOAT) throw r.error(`fetch ${name} is not f32: cast it first`);
      const node = r.append(
        'Identity',
        [edge],
        { T: { type: edge.dtype } },
        { name: r.uniqueName(`${r.phase}/fetch/${name}`) },
      );
      phaseOf(r.phase).fetches.push({ name, node, shape: edge.shape });
    },
    write(name, length, parts) {
      const node = r.uniqueName(`${r.phase}/written/${name}`);
      const { phase } = r;
      const attrs = { dtype: { type: DType.INT32 }, shape: { shape: [length] } };
      r.nodes.push({ name: node, op: 'Placeholder', inputs: [], attrs, device: HOST });
      phaseOf(phase).written.push({ name, node, length });
      const append = (op: string, inputs: Edge[], attrs: Record<string, AttrValue>, shape: number[]): Edge => {
        return { name: r.append(op, inputs, attrs, { device: HOST }), shape, dtype: DType.FLOAT, phase };
      };
      const ints = (...values: number[]) => r.constant([values.length], DType.INT32, values);
      const T = { type: DType.FLOAT };
      const index = { type: DType.INT32 };
      const words = { name: node, shape: [length], dtype: DType.INT32, phase };
      const all = append('Bitcast', [words], { T: index, type: T }, [length]);
      for (const { offset, value } of parts) {
        const { size } = value;
        if (offset % ALIGNED_ELEMENTS !== 0 || size % ALIGNED_ELEMENTS !== 0 || offset + size > length) {
          throw r.error(`${name}: ${size} elements cannot be written at ${offset} of ${length}`);
        }
        const row = (edge: Edge) => append('Reshape', [edge, ints(1, size)], { T, Tshape: index }, [1, size]);
        const place = append('Slice', [all, ints(offset), ints(size)], { T, Index: index }, [size]);
        // Updates the memory that it is given, not a copy.
        r.update(append('InplaceUpdate', [row(place), ints(0), row(edgeOf(value))], { T }, [1, size]).name);
      }
    },
    feed(name, shape, dtype = 'float32') {
      return placeholder(name, shape, dtype === 'float32' ? DType.FLOAT : DType.INT32);
    },
    feedBytes(name, shape) {
      const bytes = shape.reduce((a, b) => a * b, 1);
      const words = placeholder(name, [Math.ceil(bytes / 4)], DType.INT32, bytes);
      const u8 = r.append('Bitcast', [edgeOf(words)], { T: { type: DType.INT32 }, type: { type: DType.UINT8 } });
      const f32 = r.append('Cast', [{ name: u8, shape: [], dtype: DType.UINT8, phase: r.phase }], {
        SrcT: { type: DType.UINT8 },
        DstT: { type: DType.FLOAT },
      });
      const flat = tensorOf({ name: f32, shape: [Math.ceil(bytes / 4) * 4], dtype: DType.FLOAT, phase: r.phase });
      return tf.reshape(flat.size === bytes ? flat : tf.slice(flat, 0, bytes), shape);
    },
    variable(name, shape) {
      const handle = r.uniqueName(`var/${name}`);
      r.nodes.push({ name: handle, op: 'VarHandleOp', inputs: [], attrs: variableAttrs(handle, shape, DType.FLOAT) });
      return new GraphVariable(name, shape, handle, r, tensorOf, edgeOf);
    },
  };
  try {
    body(c);
  } catch (thrown) {
    throw asBraidError(thrown, 'CAPTURE');
  }
  for (const [name, nodes] of r.updates) {
    r.phase = name;
    const done = r.constant([], DType.FLOAT, [0]);
    phaseOf(name).updates = r.append(
      'Identity',
      [done],
      { T: { type: DType.FLOAT } },
      {
        name: r.uniqueName(`${name}/${UPDATES}`),
        control: [...nodes],
      },
    );
  }
  return { model: encodeSavedModel(r.nodes), phases, nodes: r.nodes, bytes: r.bytes, phaseOf: r.phaseOf };
}

class GraphVariable implements Variable {
  readonly name: string;
  readonly shape: number[];
  private readonly handle: Edge;
  private readonly r: Recorder;
  private readonly tensorOf: (edge: Edge) => Tensor;
  private readonly edgeOf: (tensor: Tensor) => Edge;

  constructor(
    name: string,
    shape: number[],
    handle: string,
    r: Recorder,
    tensorOf: (edge: Edge) => Tensor,
    edgeOf: (tensor: Tensor) => Edge,
  ) {
    this.name = name;
    this.shape = shape;
    this.handle = { name: handle, shape: [], dtype: DType.RESOURCE, phase: null };
    this.r = r;
    this.tensorOf = tensorOf;
    this.edgeOf = edgeOf;
  }

  read(): Tensor {
    return this.tensorOf({ name: '', shape: this.shape, dtype: DType.FLOAT, phase: null, variable: this.handle.name });
  }

  assign(value: Tensor): void {
    // DeepCopy: a fed tensor may alias memory that its owner writes again.
    const copy = this.r.append('DeepCopy', [this.edgeOf(value)], { T: { type: DType.FLOAT } });
    const edge = { name: copy, shape: this.shape, dtype: DType.FLOAT, phase: this.r.phase };
    this.r.update(this.r.append('AssignVariableOp', [this.handle, edge], { dtype: { type: DType.FLOAT } }));
  }

  add(value: Tensor): void {
    const inputs = [this.handle, this.edgeOf(value)];
    this.r.update(this.r.append('AssignAddVariableOp', inputs, { dtype: { type: DType.FLOAT } }));
  }

  applyMomentum(
    accumulator: Variable,
    learningRate: Tensor,
    gradient: Tensor,
    momentum: number,
    nesterov: boolean,
  ): Tensor {
    const inputs = [
      this.handle,
      (accumulator as GraphVariable).handle,
      this.edgeOf(learningRate),
      this.edgeOf(gradient),
      this.r.constant([], DType.FLOAT, [momentum]),
    ];
    const attrs = { T: { type: DType.FLOAT }, use_nesterov: { b: nesterov } };
    const applied = this.r.append('ResourceApplyMomentum', inputs, attrs);
    this.r.update(applied);
    return this.tensorOf(this.r.readAfter(applied, this.handle.name, this.shape));
  }
}

/** tfjs-node's backend with all of its kernels, under a name of its own, its binding set by each capture. */
function captureBackend(): NodeBackend {
  const known = tf.findBackend(CAPTURE_BACKEND) as NodeBackend | null;
  if (known !== null) return known;
  const Backend = eagerBackend.constructor as new (binding: unknown, name: string) => NodeBackend;
  const backend = new Backend(new Recorder().binding, 'braid');
  for (const kernel of tf.getKernelsForBackend(EAGER_BACKEND)) {
    tf.registerKernel({
      ...kernel,
      backendName: CAPTURE_BACKEND,
      kernelFunc: (args) => {
        const outer = recorder?.kernel ?? '';
        if (recorder !== null) recorder.kernel = kernel.kernelName;
        try {
          return kernel.kernelFunc(args);
        } finally {
          if (recorder !== null) recorder.kernel = outer;
        }
      },
    });
  }
  tf.registerBackend(CAPTURE_BACKEND, () => backend);
  return backend;
}
