# SSDLite with MobileMamba-T2 on the demo data, enlarged to 512 pixels.
_base_ = './ssdlite_mobilemamba_demo.py'

resize = dict(type='Resize', scale=(512, 512), keep_ratio=False)
train_pipeline = [resize if t['type'] == 'Resize' else t for t in _base_.train_pipeline]
test_pipeline = [resize if t['type'] == 'Resize' else t for t in _base_.test_pipeline]

# 600 steps of 4 pictures take about as long as the 1200 of 8 smaller ones.
train_dataloader = dict(batch_size=4, dataset=dict(times=1, dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
