/** Where samples come from, and what is made of them before a network sees them. */
import { z } from 'zod';
import { count, positive, positiveInt } from './numbers.ts';

const perChannel = z.array(z.number()).min(1).max(3);
/** A factor is drawn from [max(0, 1 - strength), 1 + strength]; 0: off. */
const jitterStrength = z.number().nonnegative().default(0);

/** As torchvision's transforms of these names do it on uint8 images, antialiased and bilinear. */
const resizedCropSchema = z.strictObject({
  /** Side in pixels of what the network sees. */
  size: positiveInt.default(224),
  /** RandomResizedCrop: the crop's part of the image's area, and its width over its height: from, to. */
  area: z.tuple([positive, positive.max(1)]).default([0.08, 1]),
  ratio: z.tuple([positive, positive]).default([3 / 4, 4 / 3]),
  /** Resize: the short side in evaluation, before CenterCrop takes the middle. */
  evaluationResize: positiveInt.default(256),
  /** ColorJitter. */
  jitter: z
    .strictObject({
      brightness: jitterStrength,
      contrast: jitterStrength,
      saturation: jitterStrength,
      /** Of the colour circle's turns, drawn from [-hue, hue]. */
      hue: z.number().min(0).max(0.5).default(0),
    })
    .prefault({}),
  /**
   * Decode a JPEG at a half, a quarter or an eighth where the crop is shrunk by at least that much anyway. A third less
   * work there, and pixels that are one grey level from torchvision's on average, up to fifty at sharp edges.
   */
  scaledDecode: z.boolean().default(false),
});

export const dataSchema = z.strictObject({
  format: z.enum(['cifar10', 'cifar100', 'idx', 'folder', 'indexed']),
  /**
   * Folder with the files of the format. For `folder`: the training images, a folder or .tar with a sub-folder a class. For
   * `indexed`: the index that `braid data index` made of them, or the folder or URL that holds it.
   */
  path: z.string().min(1),
  /** A data set that `braid data fetch` knows: brought into `path` when its files are not there. */
  fetch: z.string().nullable().default(null),
  /** For `folder` and `indexed` only: the test images. */
  testPath: z.string().min(1).optional(),
  /** How many classes the networks tell apart; null: as many as the format has. */
  classes: positiveInt.nullable().default(null),
  /**
   * What a worker gets of its samples: their bytes, or (for `indexed` only) `ids`, and reads them itself by an index that
   * is at the same path or URL and equal.
   */
  send: z.enum(['bytes', 'ids']).default('bytes'),
  shuffle: z.boolean().default(true),
  /** A training sample that cannot be read or decoded ends the run, or another of its batch stands in for it. */
  onBadSample: z.enum(['fail', 'skip']).default('fail'),
  /** Per channel, on the 0..255 scale. */
  mean: perChannel,
  std: perChannel,
  augment: z
    .strictObject({
      /** Pixels added on each side before a random crop back to size. */
      pad: count.default(4),
      padMode: z.enum(['reflect', 'zero']).default('reflect'),
      flip: z.boolean().default(true),
    })
    .prefault({}),
  /** Each branch has its own random crop, flip and colours of an image, in place of the same for all. Takes `trunk: none`. */
  perBranch: z.boolean().default(false),
  /** For `folder` and `indexed` only: images of any size, of which a random part is brought to one size; null: all have one size. */
  resizedCrop: resizedCropSchema.nullable().default(null),
});

type Data = z.infer<typeof dataSchema>;
export type ResizedCrop = z.infer<typeof resizedCropSchema>;

/** Formats of JPEG and PNG files. */
const IMAGE_FILES: readonly string[] = ['folder', 'indexed'];

/** What is wrong with the data, for branches with such a trunk. */
export function dataProblems(data: Data, trunk: 'shared' | 'none'): string[] {
  const problems: string[] = [];
  const { format, testPath, mean, std } = data;
  if (mean.length !== std.length) {
    problems.push(`data.std: ${std.length} values, but data.mean has ${mean.length}`);
  }
  std.forEach((s, i) => {
    if (!(s > 0)) problems.push(`data.std.${i}: ${s} is not above 0`);
  });
  const ofFiles = IMAGE_FILES.includes(format);
  if (ofFiles && testPath === undefined) problems.push(`data.testPath: required with format ${format}`);
  if (!ofFiles && testPath !== undefined) problems.push(`data.testPath: only for format ${IMAGE_FILES.join(' and ')}`);
  if (data.perBranch && trunk === 'shared') {
    problems.push(
      'data.perBranch: branches that share a trunk see the same pixels: set trunk to none, or perBranch to false',
    );
  }
  if (data.send === 'ids' && format !== 'indexed') {
    problems.push(`data.send: ids, but format ${format} has no index: set format to indexed, or send to bytes`);
  }
  problems.push(...resizedCropProblems(data));
  return problems;
}

function resizedCropProblems({ resizedCrop, format, augment, mean }: Data): string[] {
  if (resizedCrop === null) return [];
  const problems: string[] = [];
  const { size, area, ratio, evaluationResize } = resizedCrop;
  if (!IMAGE_FILES.includes(format)) {
    problems.push(`data.resizedCrop: only for format ${IMAGE_FILES.join(' and ')}, here is ${format}`);
  }
  if (augment.pad !== 0) {
    problems.push(`data.augment.pad: ${augment.pad}, but data.resizedCrop takes the crop: set pad to 0`);
  }
  if (mean.length !== 3) {
    problems.push(`data.mean: ${mean.length} value(s), but data.resizedCrop makes images of 3 channels`);
  }
  if (area[0] > area[1]) problems.push(`data.resizedCrop.area: from ${area[0]} to ${area[1]}: put the smaller first`);
  if (ratio[0] > ratio[1])
    problems.push(`data.resizedCrop.ratio: from ${ratio[0]} to ${ratio[1]}: put the smaller first`);
  if (evaluationResize < size) {
    problems.push(
      `data.resizedCrop.evaluationResize: ${evaluationResize} is less than the size that is cut from it, ${size}`,
    );
  }
  return problems;
}
