/** Numbers that recipes are made of. */
import { z } from 'zod';

export const positiveInt = z.number().int().positive();
export const count = z.number().int().nonnegative();
export const positive = z.number().positive();
