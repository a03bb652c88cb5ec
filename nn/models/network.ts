/**
 * A network is a list of stages and a classifier on the last stage's map. A shared trunk is its first stages, up to a
 * cut after any of them; the others and the classifier are a branch.
 */
import type { Branch, Recipe } from '../../core/recipe.ts';
import type { Builder } from '../builder.ts';
import type { Tensor } from '../tensorflow.ts';
import { densenet } from './densenet.ts';
import { imagenetResnet } from './imagenet-resnet.ts';
import { mobilenetV2 } from './mobilenetv2.ts';
import { resnet } from './resnet.ts';
import { vgg16 } from './vgg.ts';
import { wrn } from './wrn.ts';

/** Height, width and channels of a feature map. */
export type MapShape = [height: number, width: number, channels: number];

export interface Stage {
  /** Unique in its network: what `shareUntil` names. */
  name: string;
  /** What the stage makes of a map of this shape. */
  shape(input: MapShape): MapShape;
  /** @param x [B, H, W, C] in the builder's precision   @param prefix of its variables' names */
  forward(b: Builder, prefix: string, x: Tensor): Tensor;
}

export interface Network {
  /** In order. The last one ends with the activation, before pooling: its map is the branch's feature map. */
  stages: Stage[];
  /** The last stage of a shared trunk, where the recipe does not say. */
  shareUntil: string;
  /** @param pooled f32[B, C], the mean over the last map   @returns f32[B, classes] */
  head(b: Builder, prefix: string, pooled: Tensor, classes: number): Tensor;
}

export interface Cut {
  trunk: Stage[];
  branch: Stage[];
}

export function networkOf(branch: Branch): Network {
  switch (branch.network) {
    case 'resnet':
      return resnet(branch);
    case 'wrn':
      return wrn(branch);
    case 'vgg':
      return vgg16();
    case 'densenet':
      return densenet(branch);
    case 'mobilenetv2':
    case 'imagenet-mobilenetv2':
      return mobilenetV2(branch);
    case 'imagenet-resnet':
      return imagenetResnet(branch);
  }
}

/** Where the recipe, or else the network itself, cuts it. */
export function cutOf(network: Network, { shareUntil }: Pick<Recipe, 'shareUntil'>): Cut {
  const at = network.stages.findIndex(({ name }) => name === (shareUntil ?? network.shareUntil));
  return { trunk: network.stages.slice(0, at + 1), branch: network.stages.slice(at + 1) };
}

export function runStages(stages: Stage[], b: Builder, prefix: string, x: Tensor): Tensor {
  return stages.reduce((map, stage) => stage.forward(b, prefix, map), x);
}

export function shapeAfter(stages: Stage[], image: { height: number; width: number; channels: number }): MapShape {
  return stages.reduce<MapShape>((shape, stage) => stage.shape(shape), [image.height, image.width, image.channels]);
}
