"use strict";
{% include "tables.js" %}
{% include "gallery.js" %}
{% include "viewer.js" %}
