import { LabIcon } from '@jupyterlab/ui-components';
import compare from '../style/icons/compare.svg';
import fork from '../style/icons/fork.svg';
import pin from '../style/icons/pin.svg';
import moon from '../style/icons/torpor.svg';

/** The moon of a sleeper. */
export const torporIcon = new LabIcon({ name: 'torpor:moon', svgstr: moon });

/** A pin, for checkpoints that stay. */
export const pinIcon = new LabIcon({ name: 'torpor:pin', svgstr: pin });

/** Two ways from one point. */
export const forkIcon = new LabIcon({ name: 'torpor:fork', svgstr: fork });

/** Two things side by side. */
export const compareIcon = new LabIcon({ name: 'torpor:compare', svgstr: compare });
