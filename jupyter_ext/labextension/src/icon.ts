import { LabIcon } from '@jupyterlab/ui-components';
import pin from '../style/icons/pin.svg';
import moon from '../style/icons/torpor.svg';

/** The moon of a sleeper. */
export const torporIcon = new LabIcon({ name: 'torpor:moon', svgstr: moon });

/** A pin, for checkpoints that stay. */
export const pinIcon = new LabIcon({ name: 'torpor:pin', svgstr: pin });
