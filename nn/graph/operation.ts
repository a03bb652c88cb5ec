/** What TensorFlow's operations are made tfjs kernels with. */
import {
  DType,
  EAGER_BACKEND,
  eagerBackend,
  type NamedTensorMap,
  type NodeBackend,
  type OpAttr,
  type Tensor,
  tf,
} from '../tensorflow.ts';

const binding = eagerBackend.binding;
export const typeAttr = (name: string, dtype: number): OpAttr => ({ name, type: binding.TF_ATTR_TYPE, value: dtype });
export const intsAttr = (name: string, value: number[]): OpAttr => ({ name, type: binding.TF_ATTR_INT, value });
export const stringAttr = (name: string, value: string): OpAttr => ({ name, type: binding.TF_ATTR_STRING, value });
export const boolAttr = (name: string, value: boolean): OpAttr => ({ name, type: binding.TF_ATTR_BOOL, value });
export const floatAttr = (name: string, value: number): OpAttr => ({ name, type: binding.TF_ATTR_FLOAT, value });

/** The recorder sets T to what the operands are in the graph. */
export const T = typeAttr('T', DType.FLOAT);

type Attrs = Record<string, unknown>;
type Inputs = Record<string, Tensor>;

interface Operation {
  run(backend: NodeBackend, inputs: Inputs, attrs: Attrs): Tensor | Tensor[];
  /** What the gradient reads, besides dy: inputs by name, outputs by position. */
  keep?: { inputs?: string[]; outputs?: boolean[] };
  gradient?(dy: Tensor | Tensor[], kept: Tensor[], attrs: Attrs): Record<string, () => Tensor>;
}

export function operation(name: string, { run, keep, gradient }: Operation) {
  const kernelName = `Braid${name}`;
  tf.registerKernel({
    kernelName,
    backendName: EAGER_BACKEND,
    kernelFunc: ({ inputs, backend, attrs }) => run(backend as NodeBackend, inputs as Inputs, (attrs ?? {}) as Attrs),
  });
  if (gradient !== undefined) {
    tf.registerGradient({
      kernelName,
      ...(keep?.inputs === undefined ? {} : { inputsToSave: keep.inputs }),
      ...(keep?.outputs === undefined ? {} : { outputsToSave: keep.outputs }),
      gradFunc: (dy, kept, attrs) => gradient(dy, kept, attrs as Attrs),
    });
  }
  return <Result extends Tensor | Tensor[] = Tensor>(inputs: Inputs, attrs: Attrs = {}): Result =>
    tf.engine().runKernel(kernelName, inputs as unknown as NamedTensorMap, attrs as never) as unknown as Result;
}

export const shapeTensor = (shape: number[]) => tf.tensor1d(shape, 'int32');

/** Of a window of pixels. */
export const windowAttrs = (stride: number, padding: 'SAME' | 'VALID'): OpAttr[] => [
  T,
  intsAttr('strides', [1, stride, stride, 1]),
  stringAttr('padding', padding),
];
