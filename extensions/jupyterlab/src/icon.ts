import { LabIcon } from '@jupyterlab/ui-components';

import cloudshiftSvg from '../style/icons/cloudshift.svg';

/** A cloud with an arrow; follows the theme through `jp-icon3`. */
export const cloudshiftIcon = new LabIcon({
  name: 'cloudshift-lab:cloud',
  svgstr: cloudshiftSvg
});
